#include "ttrpc/session.h"

#include <exception>
#include <utility>

#include "base/failpoint.h"
#include "base/log.h"
#include "ttrpc/status.h"
#include "ttrpc/ttrpc.pb.h"

namespace kuasar::ttrpc {
namespace {

// A longer timeout is this long: the sum with now must not overflow.
constexpr std::chrono::nanoseconds kLongestTimeout = std::chrono::hours(24 * 365);

std::string encode_response(std::uint32_t stream, const ::ttrpc::Response& response) {
  Result<std::string> bytes = serialize_payload(response);
  if (!bytes) return {};
  Result<std::string> frame = encode_frame(kTypeResponse, 0, stream, *bytes);
  return frame ? std::move(*frame) : std::string();
}

std::string encode_refusal(std::uint32_t stream, const Error& why) {
  ::ttrpc::Response response;
  *response.mutable_status() = to_status(why);
  return encode_response(stream, response);
}

}  // namespace

struct Session::Call {
  std::uint32_t stream;
  std::shared_ptr<const Method> method;
  std::chrono::steady_clock::time_point arrived;
  std::shared_ptr<const CallNotes> notes;
  bool answered = false;
  std::unique_ptr<IoTimer> deadline;
};

Session::Session(std::shared_ptr<SessionHost> host, std::shared_ptr<Connection> connection,
                 std::shared_ptr<Peer> peer)
    : host_(std::move(host)), connection_(std::move(connection)), peer_(std::move(peer)) {}

void Session::start() {
  // First: what is delivered again may find that the peer has gone.
  connection_->set_user(weak_from_this());
  if (Journal* journal = connection_->journal()) {
    for (const Journal::Entry& entry : journal->unanswered()) redeliver(entry);
    last_stream_ = journal->last_stream();
  }
  connection_->start(weak_from_this());
}

void Session::redeliver(const Journal::Entry& entry) {
  FrameReader reader;
  reader.feed(entry.frame);
  const Result<std::optional<FrameReader::Frame>> frame = reader.next();
  if (frame && *frame && (*frame)->header.type == kTypeRequest) return begin(**frame, &entry);
  log::error({}, "a journalled ttrpc request of {} bytes is no frame", entry.frame.size());
}

void Session::on_frame(const FrameReader::Frame& frame) {
  const FrameHeader& header = frame.header;
  // Data belongs to streams that were refused; other types are for protocols to come.
  if (header.type != kTypeRequest) return;
  if (header.stream % 2 == 0) {
    return refuse(header.stream,
                  Error::make(Code::kInvalidArgument, "stream id {} is even: a client's are odd",
                              header.stream));
  }
  if (header.stream <= last_stream_) {
    return refuse(header.stream,
                  Error::make(Code::kInvalidArgument, "stream id {} is not above the last one, {}",
                              header.stream, last_stream_));
  }
  last_stream_ = header.stream;
  if (frame.oversized) {
    return refuse(header.stream, Error::make(Code::kResourceExhausted,
                                             "a request of {} bytes is over the limit of {}",
                                             header.length, kMaxData));
  }
  begin(frame, nullptr);
}

void Session::begin(const FrameReader::Frame& frame, const Journal::Entry* redelivered) {
  const std::uint32_t stream = frame.header.stream;
  if ((frame.header.flags & (kFlagRemoteClosed | kFlagRemoteOpen | kFlagNoData)) != 0) {
    return refuse(stream, Error::make(Code::kUnimplemented, "streaming calls are not served here"));
  }
  if (unanswered_ >= kMaxUnanswered || running_ >= kMaxRunning || waiting_.size() >= kMaxWaiting) {
    return refuse(stream, Error::make(Code::kResourceExhausted,
                                      "of this connection {} calls run, {} are unanswered, {} wait",
                                      running_, unanswered_, waiting_.size()));
  }
  ::ttrpc::Request request;
  const std::string_view data = frame.data();
  if (!request.ParseFromArray(data.data(), static_cast<int>(data.size()))) {
    return refuse(stream, Error::make(Code::kInvalidArgument, "not a ttrpc request"));
  }
  Result<std::shared_ptr<const Method>> method = host_->find(request.service(), request.method());
  if (!method) return refuse(stream, method.error());

  if (redelivered != nullptr && redelivered->suspect && !(*method)->wait_handler) {
    log::error({}, "{} is not run a third time: the sandboxer crashed twice while it ran",
               (*method)->name);
    return refuse(stream, Error::make(Code::kInternal,
                                      "the sandboxer has crashed twice while it ran {}, which may "
                                      "be the cause and is not run again; its log and `journalctl` "
                                      "say more",
                                      (*method)->name));
  }
  CallContext context;
  if (request.timeout_nano() != 0) {
    const auto timeout =
        std::min(std::chrono::nanoseconds(request.timeout_nano()), kLongestTimeout) -
        (redelivered != nullptr ? redelivered->age : std::chrono::nanoseconds(0));
    if (timeout <= timeout.zero()) {
      return refuse(stream, Error::make(Code::kDeadlineExceeded, "the call came too late"));
    }
    context.deadline = std::chrono::steady_clock::now() + timeout;
  }
  context.service = std::move(*request.mutable_service());
  context.method = std::move(*request.mutable_method());
  for (::ttrpc::KeyValue& pair : *request.mutable_metadata()) {
    context.metadata.emplace_back(std::move(*pair.mutable_key()), std::move(*pair.mutable_value()));
  }
  context.redelivered = redelivered != nullptr;
  context.applied = redelivered != nullptr && redelivered->applied;
  if (connection_->journal() != nullptr) {
    context.mark_applied = [connection = connection_, stream] {
      connection->journal()->mark_applied(stream);
    };
  }
  context.peer = peer_;
  if (host_->observer().wants_notes) {
    context.notes = std::make_shared<CallNotes>();
    context.notes->traceparent = context.find("traceparent").value_or("");
  }

  const auto call = std::make_shared<Call>(
      Call{stream, std::move(*method), context.arrived, context.notes, false, nullptr});
  if (context.deadline) watch_deadline(call, *context.deadline);
  std::string& payload = *request.mutable_payload();
  if (call->method->wait_handler) return wait(call, std::move(payload), std::move(context));
  ++unanswered_;
  ++running_;
  host_->spawn(run(shared_from_this(), call, std::move(payload), std::move(context)));
}

void Session::wait(const std::shared_ptr<Call>& call, std::string payload, CallContext context) {
  failpoint("task.", call->method->name, ".before");
  Result<Awaited<std::string>> awaited =
      call->method->wait_handler(std::move(payload), std::move(context));
  if (!awaited) return finish(*call, fail(std::move(awaited).error()));
  Waiting& waiting = waiting_[call->stream];
  waiting.call = call;
  waiting.answer = std::move(awaited->answer);
  waiting.callback = Event::when_any(connection_->get_executor(), std::move(awaited->events),
                                     [this, stream = call->stream] { end_wait(stream); });
}

void Session::end_wait(std::uint32_t stream) {
  // The answer may close the connection, and the server forget it.
  const auto self = shared_from_this();
  const auto ended = waiting_.extract(stream);
  finish(*ended.mapped().call, ended.mapped().answer());
}

Task<> Session::run(std::shared_ptr<Session> self, std::shared_ptr<Call> call, std::string payload,
                    CallContext context) {
  failpoint("task.", call->method->name, ".before");
  const std::uint64_t number = self->host_->call_began();
  Result<std::string> result = fail(Code::kInternal, "the call was not run");
  try {
    result = co_await call->method->handler(std::move(payload), std::move(context));
  } catch (const std::exception& e) {
    // A defect: of one call, not of every pod's daemon.
    log::error({}, "{} threw: {}", call->method->name, e.what());
    result = fail(Code::kInternal, "{}: {}", call->method->name, e.what());
  }
  self->host_->call_ended(number);
  self->finish(*call, result);
}

void Session::finish(Call& call, const Result<std::string>& result) {
  if (call.deadline) call.deadline->cancel();
  failpoint("task.", call.method->name, ".done");
  answer(call, result);
  failpoint("task.", call.method->name, ".answered");
  const Code code = result ? Code::kOk : result.error().code;
  if (const CallObserver& observer = host_->observer(); observer.ended) {
    observer.ended({call.method->service, call.method->name, code, call.arrived,
                    std::chrono::steady_clock::now(), call.notes.get()});
  }
  if (!call.method->wait_handler) --running_;
  host_->changed();
}

void Session::watch_deadline(const std::shared_ptr<Call>& call,
                             std::chrono::steady_clock::time_point deadline) {
  call->deadline = std::make_unique<IoTimer>(connection_->get_executor(), deadline);
  call->deadline->async_wait(
      [self = shared_from_this(), call](const boost::system::error_code& ec) {
        if (ec) return;
        self->answer(*call, fail(Code::kDeadlineExceeded, "the call took longer than its timeout"));
      });
}

void Session::answer(Call& call, const Result<std::string>& result) {
  if (std::exchange(call.answered, true)) return;
  if (!call.method->wait_handler) --unanswered_;
  respond(call.stream, result);
}

void Session::refuse(std::uint32_t stream, const Error& why) {
  respond(stream, fail(why));
}

void Session::respond(std::uint32_t stream, const Result<std::string>& result) {
  if (connection_->closed()) return;
  std::string frame;
  if (result) {
    ::ttrpc::Response response;
    response.set_payload(*result);
    frame = encode_response(stream, response);
    if (frame.empty()) {
      frame = encode_refusal(stream, Error::make(Code::kResourceExhausted,
                                                 "an answer of {} bytes is over the limit of {}",
                                                 result->size(), kMaxData));
    }
  } else {
    frame = encode_refusal(stream, result.error());
  }
  connection_->send(stream, std::move(frame));
}

void Session::on_closed(const Error& why) {
  // A peer that goes away between frames is the normal end.
  if (why.code == Code::kUnavailable) {
    log::debug({}, "ttrpc connection {} ended: {}", peer_->id(), why.message);
  } else {
    log::warning({}, "ttrpc connection {} closed: {}", peer_->id(), why.message);
  }
  peer_->closed_event().set();
  const Result<std::string> nobody = fail(Code::kUnavailable, "the connection is gone");
  for (auto& [stream, waiting] : std::exchange(waiting_, {})) finish(*waiting.call, nobody);
  host_->forget(peer_->id());
}

Task<Result<std::string>> Session::refuse_call(std::string words) {
  co_return fail(Code::kUnimplemented, "{}", words);
}

}  // namespace kuasar::ttrpc
