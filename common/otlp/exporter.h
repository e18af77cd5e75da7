#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "async/task.h"
#include "base/call_end.h"
#include "base/error.h"

namespace kuasar::otlp {

/// Sends what calls took to an OpenTelemetry receiver, as OTLP over gRPC without encryption. Spans
/// wait in a bounded queue and leave in batches; what finds no room, and a batch that the receiver
/// does not take, is dropped and counted: nothing is ever held up. The first failure is logged, and
/// the first success after it. Owned by the daemon's service; lives on the io thread.
class Exporter {
 public:
  struct Options {
    /// "unix:/path" or "host:port".
    std::string target;
    /// The resource's service.name and service.version.
    std::string name;
    std::string version;
    std::chrono::milliseconds interval{1000};
    std::chrono::milliseconds timeout{5000};
    std::size_t queue_limit = 4096;
  };

  Exporter(asio::any_io_executor executor, Options options);
  ~Exporter();
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  /// Takes a call that has ended, with notes or without.
  void call_ended(const CallEnd& call);

  /// Sends until stop(). Run it once.
  Task<> run();
  /// run() makes one more attempt, of a second at most, and ends.
  void stop();

  /// Spans that the receiver has taken, and that it will never get.
  std::size_t sent() const;
  std::size_t dropped() const;

 private:
  Task<bool> await_receiver();
  Task<> send_batch();

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Checks the text of the configuration: "off", "unix:/path" or "host:port".
Result<> check_target(const std::string& text);

}  // namespace kuasar::otlp
