#pragma once

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "async/event.h"
#include "async/task.h"
#include "base/timeline.h"

namespace kuasar {

/// Threads for work that may block longer than about a millisecond (mounts, recursive removal,
/// opening FIFOs). The function runs on a pool thread and must touch nothing of the io thread's
/// state; its result comes back to the io thread.
class BlockingPool {
 public:
  /// Work that has not ended.
  struct Work {
    /// Where it was begun: "task/oci_driver.cc:80".
    std::string_view file;
    int line = 0;
    std::chrono::steady_clock::time_point since;
    std::string name() const;
  };

  explicit BlockingPool(std::size_t threads = 8);
  /// Waits for what runs.
  ~BlockingPool();
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;

  /// auto work = [...] { return ...; }; co_await pool.run(std::move(work)); never cut short by
  /// cancellation. The lambda has a name of its own because g++ 12 destroys a temporary one with
  /// captures twice when it stands in the co_await expression (docs/COMMON_ERRORS.md). The last
  /// two parameters are the caller's place; nobody passes them.
  template <typename F>
  Task<std::invoke_result_t<F>> run(F work, const char* file = __builtin_FILE(),
                                    int line = __builtin_LINE()) {
    using T = std::invoke_result_t<F>;
    struct State {
      std::optional<T> result;
      Event done;
    };
    const auto place = begun_.insert(begun_.end(), {file, line, std::chrono::steady_clock::now()});
    auto state = std::make_shared<State>();
    asio::any_io_executor home = co_await asio::this_coro::executor;
    submit([state, home, work = std::move(work)]() mutable {
      state->result.emplace(work());
      asio::post(home, [state = std::move(state)] { state->done.set(); });
    });
    while (!state->done.is_set()) co_await state->done.wait();
    begun_.erase(place);
    co_return std::move(*state->result);
  }

  /// run(), with the wait for a thread and the work, as `step`, on a timeline; it may be null.
  template <typename F>
  Task<std::invoke_result_t<F>> run(F work, TimelinePtr timeline, const char* step,
                                    const char* file = __builtin_FILE(),
                                    int line = __builtin_LINE()) {
    Span waiting(timeline, "thread", SpanKind::kWait);
    auto recorded = [work = std::move(work), timeline = std::move(timeline), step,
                     waiting = std::move(waiting)]() mutable {
      waiting.end();
      const Span working(std::move(timeline), step);
      return work();
    };
    return run(std::move(recorded), file, line);
  }

  /// Work that nobody waits for but the destructor.
  template <typename F>
  void submit(F work) {
    asio::post(threads_, std::move(work));
  }

  /// What has not ended `age` after its beginning, waiting for a thread included; oldest first. For
  /// the io thread.
  std::vector<Work> older_than(std::chrono::nanoseconds age) const;
  /// How much has not ended.
  std::size_t size() const { return begun_.size(); }

 private:
  /// Of the io thread.
  std::list<Work> begun_;
  asio::thread_pool threads_;
};

}  // namespace kuasar
