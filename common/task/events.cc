#include "task/events.h"

#include <google/protobuf/empty.pb.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

#include "async/event.h"
#include "base/log.h"
#include "containerd/services/events/ttrpc/v1/events.pb.h"
#include "task/any.h"
#include "ttrpc/client.h"

namespace kuasar::task {
namespace {

using containerd::services::events::ttrpc::v1::ForwardRequest;

constexpr std::chrono::seconds kConnectTimeout{1};
// Among how many events dropped for want of room one is logged.
constexpr std::size_t kLogEvery = 1000;

void set_time(ForwardRequest& request) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
  auto* timestamp = request.mutable_envelope()->mutable_timestamp();
  timestamp->set_seconds(seconds.count());
  timestamp->set_nanos(static_cast<int>(std::chrono::nanoseconds(now - seconds).count()));
}

// No second attempt changes these answers: the event itself is refused.
bool is_final(Code code) {
  return code == Code::kInvalidArgument || code == Code::kUnimplemented ||
         code == Code::kResourceExhausted;
}

// Nobody has judged the event.
bool is_silence(Code code) {
  return code == Code::kDeadlineExceeded || code == Code::kUnavailable;
}

}  // namespace

class EventPublisher::Core {
 public:
  explicit Core(Options options) : options_(std::move(options)) {}

  void publish(std::string ns, std::string topic, const google::protobuf::MessageLite& event);
  static Task<> run(std::shared_ptr<Core> self);
  static Task<bool> drain(std::shared_ptr<Core> self, std::chrono::nanoseconds timeout);
  void stop();

  std::size_t pending() const { return queue_.size() + (current_ ? 1 : 0); }
  std::size_t dropped() const { return dropped_; }

 private:
  Task<bool> connect();
  Task<> forward();
  void settle();

  // An Event is for one use: this one is renewed by its only waiter.
  void wake() { wake_->set(); }
  std::shared_ptr<Event> renew_wake() { return wake_ = std::make_shared<Event>(); }

  const Options options_;
  std::deque<ForwardRequest> queue_;
  std::optional<ForwardRequest> current_;
  std::size_t dropped_ = 0;
  std::size_t dropped_for_room_ = 0;
  std::unique_ptr<ttrpc::Client> client_;
  std::chrono::milliseconds backoff_{0};
  bool away_logged_ = false;
  Event stop_;
  std::shared_ptr<Event> wake_ = std::make_shared<Event>();
  std::shared_ptr<Event> drained_;
};

void EventPublisher::Core::publish(std::string ns, std::string topic,
                                   const google::protobuf::MessageLite& event) {
  if (stop_.is_set()) return;
  if (queue_.size() >= std::max<std::size_t>(options_.queue_limit, 1)) {
    if (dropped_for_room_++ % kLogEvery == 0) {
      log::warning({}, "containerd takes no events: {} dropped so far, the oldest first; {} wait",
                   dropped_for_room_, pending());
    }
    ++dropped_;
    queue_.pop_front();
  }
  ForwardRequest& request = queue_.emplace_back();
  set_time(request);
  request.mutable_envelope()->set_namespace_(std::move(ns));
  request.mutable_envelope()->set_topic(std::move(topic));
  *request.mutable_envelope()->mutable_event() = pack_any(event);
  wake();
}

Task<> EventPublisher::Core::run(std::shared_ptr<Core> self) {
  while (!self->stop_.is_set()) {
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) break;
    if (self->queue_.empty()) {
      const auto event = self->renew_wake();
      co_await event->wait();
      continue;
    }
    const bool connected = co_await self->connect();
    // While containerd was away the queue may have lost its front to newer events, not its end.
    if (!connected || self->stop_.is_set()) continue;
    self->current_ = std::move(self->queue_.front());
    self->queue_.pop_front();
    co_await self->forward();
    self->settle();
  }
  self->client_.reset();
}

// True when there is a connection; else the back-off has been waited for.
Task<bool> EventPublisher::Core::connect() {
  if (client_ && !client_->closed()) co_return true;
  auto client = co_await ttrpc::Client::connect(options_.address, kConnectTimeout);
  if (client) {
    client_ = std::move(*client);
    backoff_ = backoff_.zero();
    if (std::exchange(away_logged_, false)) {
      log::info({}, "events reach containerd again; {} wait", pending());
    }
    co_return true;
  }
  if (!std::exchange(away_logged_, true)) {
    log::warning({}, "events cannot reach containerd and wait: {}", client.error().message);
  }
  backoff_ = std::clamp(backoff_ * 2, options_.first_backoff, options_.max_backoff);
  co_await stop_.wait_for(backoff_);
  co_return false;
}

// Ends when current_ was forwarded or dropped, or run() is to end.
Task<> EventPublisher::Core::forward() {
  int attempts = 0;
  while (!stop_.is_set()) {
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
    const bool connected = co_await connect();
    if (!connected || stop_.is_set()) continue;
    auto call =
        client_->call<google::protobuf::Empty>("containerd.services.events.ttrpc.v1.Events",
                                               "Forward", *current_, options_.forward_timeout);
    const auto answer = co_await std::move(call);
    if (answer) co_return;
    if (stop_.is_set() || answer.error().code == Code::kCancelled) continue;
    if (is_silence(answer.error().code)) {
      // It hangs, or has gone: with this event the reason for an end (OOMKilled) would be lost.
      if (!std::exchange(away_logged_, true)) {
        log::warning({}, "containerd does not answer, events wait ({}): {}", pending(),
                     answer.error().message);
      }
      backoff_ = std::clamp(backoff_ * 2, options_.first_backoff, options_.max_backoff);
      co_await stop_.wait_for(backoff_);
      continue;
    }
    away_logged_ = false;
    if (++attempts >= kAttempts || is_final(answer.error().code)) {
      ++dropped_;
      log::warning({}, "event {} dropped after {} attempts: {}", current_->envelope().topic(),
                   attempts, answer.error().message);
      co_return;
    }
    backoff_ = std::clamp(backoff_ * 2, options_.first_backoff, options_.max_backoff);
    co_await stop_.wait_for(backoff_);
  }
}

void EventPublisher::Core::settle() {
  current_.reset();
  if (queue_.empty() && drained_) drained_->set();
}

Task<bool> EventPublisher::Core::drain(std::shared_ptr<Core> self,
                                       std::chrono::nanoseconds timeout) {
  if (self->pending() == 0) co_return true;
  if (!self->drained_ || self->drained_->is_set()) self->drained_ = std::make_shared<Event>();
  const auto drained = self->drained_;
  co_await drained->wait_for(timeout);
  co_return self->pending() == 0;
}

void EventPublisher::Core::stop() {
  stop_.set();
  wake();
  if (client_) client_->close();
  if (drained_) drained_->set();
}

EventPublisher::EventPublisher(Options options)
    : core_(std::make_shared<Core>(std::move(options))) {}

EventPublisher::~EventPublisher() {
  core_->stop();
}

void EventPublisher::publish(std::string ns, std::string topic,
                             const google::protobuf::MessageLite& event) {
  core_->publish(std::move(ns), std::move(topic), event);
}

Task<> EventPublisher::run() {
  return Core::run(core_);
}

void EventPublisher::stop() {
  core_->stop();
}

Task<bool> EventPublisher::drain(std::chrono::nanoseconds timeout) {
  return Core::drain(core_, timeout);
}

std::size_t EventPublisher::pending() const {
  return core_->pending();
}

std::size_t EventPublisher::dropped() const {
  return core_->dropped();
}

}  // namespace kuasar::task
