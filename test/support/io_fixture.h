#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <utility>

#include "async/task.h"
#include "async/task_group.h"

namespace kuasar::test {

/// Runs coroutines to their end on an io_context of its own, as the daemon's io thread does.
class IoFixture {
 public:
  asio::any_io_executor executor() { return io_.get_executor(); }

  /// The coroutine's value; throws when it is not there after `limit` (a hang must fail a test,
  /// not the whole run).
  template <typename T>
  T run(Task<T> task, std::chrono::seconds limit = std::chrono::seconds(20)) {
    std::optional<T> value;
    spawn_root(executor(), keep(std::move(task), value));
    drive([&] { return value.has_value(); }, limit);
    return std::move(*value);
  }

  void run(Task<> task, std::chrono::seconds limit = std::chrono::seconds(20)) {
    bool done = false;
    spawn_root(executor(), note(std::move(task), done));
    drive([&] { return done; }, limit);
  }

  /// Whether a condition comes true within `limit`, while everything runs that is ready.
  template <typename Condition>
  bool comes_to(Condition condition, std::chrono::seconds limit = std::chrono::seconds(5)) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!condition() && std::chrono::steady_clock::now() < deadline) {
      io_.restart();
      io_.run_one_for(std::chrono::milliseconds(10));
    }
    return condition();
  }

  /// Whether io_context::run() returns within `limit`: nothing is pending any more.
  bool comes_to_rest(std::chrono::milliseconds limit = std::chrono::seconds(1)) {
    io_.restart();
    io_.run_for(limit);
    return io_.stopped();
  }

  /// Lets everything run that is ready, without waiting.
  void settle() {
    io_.restart();
    while (io_.poll() > 0) io_.restart();
  }

 private:
  template <typename T>
  static Task<> keep(Task<T> task, std::optional<T>& value) {
    value.emplace(co_await std::move(task));
  }
  static Task<> note(Task<> task, bool& done) {
    co_await std::move(task);
    done = true;
  }
  template <typename Done>
  void drive(Done done, std::chrono::seconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!done()) {
      io_.restart();
      io_.run_one_until(deadline);
      if (!done() && std::chrono::steady_clock::now() >= deadline) {
        throw std::runtime_error("a coroutine of the test does not end");
      }
    }
  }

  asio::io_context io_{1};
};

}  // namespace kuasar::test
