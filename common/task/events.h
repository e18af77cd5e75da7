#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "async/task.h"

namespace google::protobuf {
class MessageLite;
}

namespace kuasar::task {

/// Where task events go: the publisher, or a recorder in tests.
class EventSink {
 public:
  virtual ~EventSink() = default;
  /// `ns` is containerd's namespace ("k8s.io"), `topic` e.g. "/tasks/exit". Never blocks, never
  /// fails; the event's time is the time of this call.
  virtual void publish(std::string ns, std::string topic,
                       const google::protobuf::MessageLite& event) = 0;
  /// Waits until every event has been forwarded or dropped; false when `timeout` came first.
  virtual Task<bool> drain(std::chrono::nanoseconds timeout) = 0;
};

/// Forwards events in order to containerd's event exchange over ttrpc. Owned by the daemon; lives
/// on the io thread. Events wait in a bounded queue while containerd is away; when it is full the
/// oldest is dropped and counted in the log. An event that containerd refuses five times, or
/// as malformed, is dropped with a log line; one that it does not answer is kept and sent again.
/// Undelivered events are lost with the process.
class EventPublisher : public EventSink {
 public:
  static constexpr std::size_t kQueueLimit = 4096;
  static constexpr int kAttempts = 5;

  struct Options {
    /// containerd's ttrpc socket: its gRPC address with ".ttrpc" appended.
    std::string address;
    std::chrono::milliseconds forward_timeout{5000};
    std::chrono::milliseconds first_backoff{50};
    std::chrono::milliseconds max_backoff{2000};
    std::size_t queue_limit = kQueueLimit;
  };

  explicit EventPublisher(Options options);
  ~EventPublisher() override;
  EventPublisher(const EventPublisher&) = delete;
  EventPublisher& operator=(const EventPublisher&) = delete;

  void publish(std::string ns, std::string topic,
               const google::protobuf::MessageLite& event) override;

  /// Forwards until stop() or cancellation. Run it once; the object may be destroyed before the
  /// coroutine has noticed stop().
  Task<> run();
  /// Ends run() promptly; events that wait are not forwarded any more.
  void stop();
  Task<bool> drain(std::chrono::nanoseconds timeout) override;

  /// Events that wait, the one being forwarded included.
  std::size_t pending() const;
  /// Events dropped so far, for whatever reason.
  std::size_t dropped() const;

 private:
  class Core;
  std::shared_ptr<Core> core_;
};

}  // namespace kuasar::task
