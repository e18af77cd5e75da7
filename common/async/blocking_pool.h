#pragma once

#include <boost/asio/post.hpp>
#include <chrono>
#include <cstddef>
#include <exception>
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
///
/// `threads` threads stay. Work that has waited for kPatience gets one more thread, up to
/// kMostThreads in all, so that work which hangs (a dead volume, a container that does not freeze)
/// holds up nothing else; an added thread ends when it has had nothing to do for kIdleTime. Where
/// no thread can be added, work waits for one of those that are there.
class BlockingPool {
 public:
  static constexpr std::size_t kMostThreads = 64;
  static constexpr std::chrono::milliseconds kPatience{20};
  static constexpr std::chrono::seconds kIdleTime{10};

  /// Work that has not ended.
  struct Work {
    /// Where it was begun: "task/oci_driver.cc:80".
    std::string_view file;
    int line = 0;
    std::chrono::steady_clock::time_point since;
    std::string name() const;
  };

  /// Throws std::system_error when the threads cannot be started.
  explicit BlockingPool(std::size_t threads = 8);
  /// Waits for what runs.
  ~BlockingPool();
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;

  /// auto work = [...] { return ...; }; co_await pool.run(std::move(work)); never cut short by
  /// cancellation. What the work throws becomes a failed Result (kInternal), or the default value
  /// where the work returns no Result. The lambda has a name of its own because g++ 12 destroys a
  /// temporary one with captures twice when it stands in the co_await expression
  /// (docs/COMMON_ERRORS.md). The last two parameters are the caller's place; nobody passes them.
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
      state->result.emplace(guarded<T>(work));
      asio::post(home, [state = std::move(state)] { state->done.set(); });
    });
    while (!state->done.is_set()) {
      const bool in_time = co_await state->done.wait_for(kPatience);
      if (!in_time) add_thread_if_late();
    }
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

  /// Work that nobody waits for but the destructor; it must not throw.
  template <typename F>
  void submit(F work) {
    push(std::make_unique<JobOf<F>>(std::move(work)));
  }

  /// What has not ended `age` after its beginning, waiting for a thread included; oldest first. For
  /// the io thread.
  std::vector<Work> older_than(std::chrono::nanoseconds age) const;
  /// How much has not ended.
  std::size_t size() const { return begun_.size(); }

 private:
  struct Job {
    virtual ~Job() = default;
    virtual void run() = 0;
    std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
  };
  template <typename F>
  struct JobOf final : Job {
    explicit JobOf(F work_now) : work(std::move(work_now)) {}
    void run() override { work(); }
    F work;
  };
  struct Threads;

  template <typename T, typename F>
  static T guarded(F& work) {
    try {
      return work();
    } catch (const std::exception& e) {
      if constexpr (std::is_constructible_v<T, tl::unexpected<Error>>) {
        return fail(Code::kInternal, "{}", e.what());
      } else {
        return T{};
      }
    }
  }
  void push(std::unique_ptr<Job> job);
  void add_thread_if_late();

  /// Of the io thread.
  std::list<Work> begun_;
  std::shared_ptr<Threads> threads_;
};

}  // namespace kuasar
