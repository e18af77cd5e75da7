#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "async/event.h"
#include "async/task_group.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "daemon/listener.h"
#include "daemon/metrics_address.h"

namespace kuasar::daemon {

/// The HTTP/1.1 that a scrape needs and no more: GET /metrics, one request per connection, a
/// request of at most 8 KiB within `timeout`, at most 16 connections at a time: one more takes the
/// place of the one that has been silent for the longest. Owned by the daemon's service; lives on
/// the io thread. stop() must have ended before it is destroyed.
class MetricsServer {
 public:
  /// Called for every scrape.
  using Text = std::function<std::string()>;

  MetricsServer(asio::any_io_executor executor, Text text,
                std::chrono::milliseconds timeout = std::chrono::seconds(10));

  /// Binds and listens; the socket is the daemon's own and not kept over its restart.
  Result<> begin(const MetricsAddress& address);
  Task<> stop();

 private:
  struct Connection;

  Task<> accept_loop();
  Task<> serve(std::shared_ptr<Connection> connection);
  void make_room();
  std::string answer(const std::string& request) const;

  asio::any_io_executor executor_;
  Text text_;
  std::chrono::milliseconds timeout_;
  UniqueFd listening_;
  std::optional<Listener> file_;
  Event stopping_;
  /// Those whose request is not there yet, the oldest first.
  std::list<std::weak_ptr<Connection>> silent_;
  TaskGroup connections_;
  TaskGroup accepting_;
};

}  // namespace kuasar::daemon
