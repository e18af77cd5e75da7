#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <vector>

#include "async/task.h"

namespace kuasar {

/// One-shot event with any number of waiters: set() once, every wait before or after it ends.
/// Lives on the io thread. May be destroyed with waiters: they wake up and see it unset.
class Event {
 public:
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

 private:
  struct State {
    bool set = false;
    bool gone = false;
    std::list<asio::steady_timer*> waiters;
  };
  static void wake(State& state);
  static Task<> wait_states(std::vector<std::shared_ptr<State>> states);
  static Task<bool> wait_until(std::shared_ptr<State> state, asio::steady_timer::time_point when);

  std::shared_ptr<State> state_;
};

}  // namespace kuasar
