#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "async/task.h"

namespace kuasar {

/// One-shot event with any number of waiters: set() once, every wait before or after it ends.
/// Lives on the io thread. May be destroyed with waiters: they wake up and see it unset.
class Event {
 public:
  /// A call that is still to come, and never comes once this is destroyed. What only waits, and
  /// perhaps for days, waits so: a coroutine that is suspended in a wait of its own costs some
  /// 2.5 KiB.
  class Callback {
   public:
    Callback() = default;
    Callback(Callback&&) noexcept = default;
    Callback& operator=(Callback&& other) noexcept;
    ~Callback();

   private:
    friend class Event;
    struct Waiter;
    explicit Callback(std::shared_ptr<Waiter> waiter) : waiter_(std::move(waiter)) {}
    std::shared_ptr<Waiter> waiter_;
  };

  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  /// Wakes all waiters; further calls do nothing.
  void set();
  bool is_set() const;

  /// True when set, false when the coroutine was cancelled or the event destroyed.
  Task<bool> wait() const;
  /// True when set within `timeout`.
  Task<bool> wait_for(std::chrono::nanoseconds timeout) const;
  /// Ends when one of them is set or destroyed, or when the coroutine is cancelled. The events
  /// may be destroyed meanwhile.
  static Task<> wait_any(std::vector<const Event*> events);
  /// `then` is called once, by the executor, when one of them is set or destroyed. The events,
  /// which are different ones, may be destroyed meanwhile.
  [[nodiscard]] static Callback when_any(const asio::any_io_executor& executor,
                                         std::vector<const Event*> events,
                                         std::function<void()> then);

 private:
  struct Sleeper {
    virtual void wake() = 0;

   protected:
    ~Sleeper() = default;
  };
  struct TimerSleeper;
  using Sleepers = std::list<Sleeper*>;
  struct State {
    bool set = false;
    bool gone = false;
    Sleepers sleepers;
  };
  static void wake(State& state);
  static Task<> wait_states(std::vector<std::shared_ptr<State>> states);
  static Task<bool> wait_until(std::shared_ptr<State> state, asio::steady_timer::time_point when);

  std::shared_ptr<State> state_;
};

}  // namespace kuasar
