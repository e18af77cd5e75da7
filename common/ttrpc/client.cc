#include "ttrpc/client.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <optional>

#include "ttrpc/connection.h"
#include "ttrpc/status.h"
#include "ttrpc/ttrpc.pb.h"

namespace kuasar::ttrpc {
namespace {

constexpr std::chrono::milliseconds kBacklogPause{10};
// The last odd stream id; a connection that has used it up is closed.
constexpr std::uint32_t kLastStream = 0xffffffff;

Result<UniqueFd> try_connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Code::kInvalidArgument, "\"{}\" is no path of a socket: 1 to {} bytes", path,
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno("socket", "AF_UNIX");
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) !=
         0) {
    if (errno == EINTR) continue;
    Error why = Error::from_errno("connect to", path);
    why.code = Code::kUnavailable;
    return fail(std::move(why));
  }
  return socket;
}

}  // namespace

class Client::Core : public ConnectionUser, public std::enable_shared_from_this<Core> {
 public:
  explicit Core(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

  void start() { connection_->start(weak_from_this()); }
  bool closed() const { return connection_->closed(); }
  void close(Error why) { connection_->close(std::move(why)); }

  static Task<Result<std::string>> call(std::shared_ptr<Core> self, std::string service,
                                        std::string method, Result<std::string> payload,
                                        std::chrono::nanoseconds timeout, Metadata metadata);

  // ConnectionUser
  void on_frame(const FrameReader::Frame& frame) override;
  void on_closed(const Error& why) override;

 private:
  struct Pending {
    std::optional<Result<std::string>> result;
    Event done;

    void finish(Result<std::string> with) {
      result = std::move(with);
      done.set();
    }
  };

  Error unavailable() const {
    return Error::make(Code::kUnavailable, "ttrpc connection closed: {}", why_closed_);
  }

  std::shared_ptr<Connection> connection_;
  std::string why_closed_ = "not by us";
  std::uint32_t next_stream_ = 1;
  std::map<std::uint32_t, std::shared_ptr<Pending>> pending_;
};

Task<Result<std::string>> Client::Core::call(std::shared_ptr<Core> self, std::string service,
                                             std::string method, Result<std::string> payload,
                                             std::chrono::nanoseconds timeout, Metadata metadata) {
  if (!payload) co_return fail(std::move(payload).error());
  if (self->closed()) co_return fail(self->unavailable());
  if (timeout < timeout.zero()) co_return fail(Code::kDeadlineExceeded, "no time left to call");
  ::ttrpc::Request request;
  request.set_service(service);
  request.set_method(method);
  request.set_payload(std::move(*payload));
  request.set_timeout_nano(timeout.count());
  for (auto& [key, value] : metadata) {
    ::ttrpc::KeyValue* pair = request.add_metadata();
    pair->set_key(std::move(key));
    pair->set_value(std::move(value));
  }
  CO_TRY(const std::string bytes, serialize_payload(request));
  const std::uint32_t stream = self->next_stream_;
  CO_TRY(std::string frame, encode_frame(kTypeRequest, 0, stream, bytes));
  if (stream == kLastStream) {
    self->close(Error::make(Code::kUnavailable, "out of stream ids"));
    co_return fail(self->unavailable());
  }
  self->next_stream_ += 2;
  const auto pending = std::make_shared<Pending>();
  self->pending_[stream] = pending;
  self->connection_->send(stream, std::move(frame));

  const auto deadline = std::chrono::steady_clock::now() + timeout;
  const bool limited = timeout > timeout.zero();
  if (limited) {
    co_await pending->done.wait_for(timeout);
  } else {
    co_await pending->done.wait();
  }
  self->pending_.erase(stream);
  if (pending->result) co_return std::move(*pending->result);
  if (limited && std::chrono::steady_clock::now() >= deadline) {
    co_return fail(Code::kDeadlineExceeded, "{}.{} did not answer in {} ms", service, method,
                   std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count());
  }
  co_return fail(Code::kCancelled, "the call of {}.{} was cancelled", service, method);
}

void Client::Core::on_frame(const FrameReader::Frame& frame) {
  if (frame.header.type != kTypeResponse) return;
  const auto found = pending_.find(frame.header.stream);
  // An answer that came after its timeout.
  if (found == pending_.end()) return;
  const std::shared_ptr<Pending> pending = found->second;
  if (frame.oversized) {
    return pending->finish(fail(Code::kResourceExhausted,
                                "the answer of {} bytes is over the limit of {}",
                                frame.header.length, kMaxData));
  }
  ::ttrpc::Response response;
  const std::string_view data = frame.data();
  if (!response.ParseFromArray(data.data(), static_cast<int>(data.size()))) {
    return pending->finish(fail(Code::kInternal, "the answer is no ttrpc response"));
  }
  if (response.status().code() != 0) return pending->finish(fail(from_status(response.status())));
  pending->finish(std::move(*response.mutable_payload()));
}

void Client::Core::on_closed(const Error& why) {
  why_closed_ = why.message;
  for (const auto& [stream, pending] : pending_) {
    if (!pending->result) pending->finish(fail(unavailable()));
  }
}

Client::Client(std::shared_ptr<Core> core) : core_(std::move(core)) {}

Client::~Client() {
  close();
}

Task<Result<std::unique_ptr<Client>>> Client::connect(std::string path,
                                                      std::chrono::nanoseconds timeout) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    Result<UniqueFd> socket = try_connect(path);
    if (socket) co_return adopt(executor, std::move(*socket));
    // EAGAIN: the listener's backlog is full (unix(7)).
    const bool cancelled =
        (co_await asio::this_coro::cancellation_state).cancelled() != asio::cancellation_type::none;
    if (socket.error().err != EAGAIN || cancelled || std::chrono::steady_clock::now() >= deadline) {
      co_return fail(std::move(socket).error());
    }
    co_await sleep_for(kBacklogPause);
  }
}

Result<std::unique_ptr<Client>> Client::adopt(asio::any_io_executor executor, UniqueFd socket) {
  TRY(auto connection, Connection::adopt(std::move(executor), std::move(socket), nullptr));
  auto core = std::make_shared<Core>(std::move(connection));
  core->start();
  return std::unique_ptr<Client>(new Client(std::move(core)));
}

Task<Result<std::string>> Client::call_raw(std::string service, std::string method,
                                           Result<std::string> payload,
                                           std::chrono::nanoseconds timeout, Metadata metadata) {
  return Core::call(core_, std::move(service), std::move(method), std::move(payload), timeout,
                    std::move(metadata));
}

bool Client::closed() const {
  return core_->closed();
}

void Client::close() {
  core_->close(Error::make(Code::kUnavailable, "closed by its owner"));
}

}  // namespace kuasar::ttrpc
