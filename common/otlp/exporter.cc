#include "otlp/exporter.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <charconv>
#include <deque>
#include <iterator>
#include <random>
#include <utility>

#include "async/event.h"
#include "base/log.h"
#include "opentelemetry/proto/collector/trace/v1/trace_service.grpc.pb.h"
#include "otlp/trace.h"

namespace kuasar::otlp {
namespace {

namespace api = ::opentelemetry::proto::collector::trace::v1;
using namespace std::chrono_literals;

constexpr std::size_t kBatch = 512;
constexpr auto kLastAttempt = 1s;
constexpr auto kReconnect = 2s;
constexpr auto kLook = 50ms;

/// One Export, shared with gRPC's callback.
struct Send {
  grpc::ClientContext context;
  api::ExportTraceServiceRequest request;
  api::ExportTraceServiceResponse response;
  grpc::Status status;
  /// Belongs to the io thread.
  Event done;
};

}  // namespace

Result<> check_target(const std::string& text) {
  if (text == "off" || (text.starts_with("unix:/") && text.find('\0') == std::string::npos)) {
    return {};
  }
  const std::size_t colon = text.rfind(':');
  std::uint16_t port = 0;
  const char* end = text.data() + text.size();
  const char* digits = colon == std::string::npos ? end : text.data() + colon + 1;
  const auto parsed = std::from_chars(digits, end, port);
  const bool good = colon != std::string::npos && colon > 0 && digits != end &&
                    parsed.ec == std::errc{} && parsed.ptr == end && port != 0 &&
                    text.find('/') == std::string::npos;
  if (good) return {};
  return fail(Code::kInvalidArgument,
              "must be \"off\", \"unix:/path\" or \"host:port\" (OTLP over gRPC, no \"http://\"), "
              "not \"{}\"",
              text);
}

struct Exporter::Impl {
  Impl(asio::any_io_executor executor, Options given)
      : io(std::move(executor)), options(std::move(given)), random(std::random_device()()) {}

  void queue_up(std::vector<Span> spans) {
    const std::size_t room = options.queue_limit - queue.size();
    const std::size_t taken = std::min(room, spans.size());
    std::move(spans.begin(), spans.begin() + static_cast<std::ptrdiff_t>(taken),
              std::back_inserter(queue));
    dropped += spans.size() - taken;
  }

  api::ExportTraceServiceRequest next_batch() {
    api::ExportTraceServiceRequest request;
    auto* resource = request.add_resource_spans();
    const auto set = [&](const char* key, const std::string& value) {
      auto* attribute = resource->mutable_resource()->add_attributes();
      attribute->set_key(key);
      attribute->mutable_value()->set_string_value(value);
    };
    set("service.name", options.name);
    set("service.version", options.version);
    auto* scope = resource->add_scope_spans();
    scope->mutable_scope()->set_name("kuasar");
    scope->mutable_scope()->set_version(options.version);
    for (std::size_t i = 0; i < kBatch && !queue.empty(); ++i) {
      *scope->add_spans() = std::move(queue.front());
      queue.pop_front();
    }
    return request;
  }

  // Logged when it changes, not each time.
  void settle(const Send& send, std::size_t spans) {
    if (!send.status.ok()) {
      dropped += spans;
      if (!std::exchange(failing, true)) {
        log::warning({}, "spans are not taken by {} and dropped: {}", options.target,
                     send.status.error_message());
      }
      return;
    }
    const auto rejected = static_cast<std::size_t>(std::clamp<std::int64_t>(
        send.response.partial_success().rejected_spans(), 0, static_cast<std::int64_t>(spans)));
    dropped += rejected;
    sent += spans - rejected;
    if (std::exchange(failing, false)) log::info({}, "spans are taken by {} again", options.target);
  }

  asio::any_io_executor io;
  Options options;
  std::mt19937_64 random;
  std::deque<Span> queue;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<api::TraceService::Stub> stub;
  Event stopping;
  bool failing = false;
  std::size_t sent = 0;
  std::size_t dropped = 0;
};

Exporter::Exporter(asio::any_io_executor executor, Options options)
    : impl_(std::make_unique<Impl>(std::move(executor), std::move(options))) {}

Exporter::~Exporter() = default;

void Exporter::call_ended(const CallEnd& call) {
  // It ends with the pod or process, and says nothing of us.
  if (call.method == "Wait") return;
  const Moment now{std::chrono::steady_clock::now(), std::chrono::system_clock::now()};
  const Random random = [this] { return impl_->random(); };
  impl_->queue_up(spans_of(call, now, random));
}

// False after the patience with a receiver, or at the stop. gRPC's own waiting (wait_for_ready) is
// not used: with 1.51 the process aborts at times when the channel ends ("prior > 0" in
// ref_counted.h).
Task<bool> Exporter::await_receiver() {
  Impl& impl = *impl_;
  const auto until = std::chrono::steady_clock::now() + impl.options.timeout;
  bool stopping = false;
  while (impl.channel->GetState(true) != GRPC_CHANNEL_READY) {
    if (stopping || std::chrono::steady_clock::now() >= until) co_return false;
    stopping = co_await impl.stopping.wait_for(kLook);
  }
  co_return true;
}

Task<> Exporter::send_batch() {
  Impl& impl = *impl_;
  const bool there = co_await await_receiver();
  const auto send = std::make_shared<Send>();
  const std::size_t before = impl.queue.size();
  send->request = impl.next_batch();
  const std::size_t spans = before - impl.queue.size();
  if (!there) {
    send->status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "nobody answers there");
    impl.settle(*send, spans);
    co_return;
  }
  const std::chrono::milliseconds patience =
      impl.stopping.is_set() ? kLastAttempt : impl.options.timeout;
  send->context.set_deadline(std::chrono::system_clock::now() + patience);
  impl.stub->async()->Export(&send->context, &send->request, &send->response,
                             [io = impl.io, send](grpc::Status status) {
                               send->status = std::move(status);
                               asio::post(io, [send] { send->done.set(); });
                             });
  std::vector<const Event*> events{&send->done, &impl.stopping};
  co_await Event::wait_any(std::move(events));
  if (!send->done.is_set()) {
    co_await send->done.wait_for(kLastAttempt);
    send->context.TryCancel();
  }
  // gRPC calls back in any case, into the executor.
  while (!send->done.is_set()) co_await send->done.wait();
  impl.settle(*send, spans);
}

Task<> Exporter::run() {
  Impl& impl = *impl_;
  grpc::ChannelArguments arguments;
  // Its own goes up to two minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnect / 1ms);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kReconnect / 1ms);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnect / 1ms);
  impl.channel =
      grpc::CreateCustomChannel(impl.options.target, grpc::InsecureChannelCredentials(), arguments);
  impl.stub = api::TraceService::NewStub(impl.channel);
  while (!impl.stopping.is_set()) {
    if (impl.queue.size() < kBatch) co_await impl.stopping.wait_for(impl.options.interval);
    if (!impl.queue.empty()) co_await send_batch();
  }
  if (!impl.queue.empty()) co_await send_batch();
  impl.dropped += impl.queue.size();
  impl.queue.clear();
}

void Exporter::stop() {
  impl_->stopping.set();
}

std::size_t Exporter::sent() const {
  return impl_->sent;
}

std::size_t Exporter::dropped() const {
  return impl_->dropped;
}

}  // namespace kuasar::otlp
