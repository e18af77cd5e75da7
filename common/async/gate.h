#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <utility>

#include "async/task.h"

namespace kuasar {

/// Lets at most `width` holders through at a time, first come first served. Lives on the io
/// thread. A Pass gives its place on when it is destroyed.
class Gate {
 private:
  struct Waiter {
    asio::steady_timer* timer;
    bool granted = false;
  };
  struct State {
    std::size_t free;
    std::list<Waiter*> waiters;
    void release();
  };

 public:
  class Pass {
   public:
    Pass() = default;
    Pass(Pass&&) noexcept = default;
    Pass& operator=(Pass&& other) noexcept {
      std::swap(state_, other.state_);
      return *this;
    }
    ~Pass() {
      if (state_) state_->release();
    }

   private:
    friend class Gate;
    explicit Pass(std::shared_ptr<State> state) : state_(std::move(state)) {}
    std::shared_ptr<State> state_;
  };

  explicit Gate(std::size_t width);
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  /// Waits for a place. Cancelling the coroutine does not cut the wait short: a place always
  /// comes, because holders always finish.
  Task<Pass> enter();
  std::size_t waiting() const { return state_->waiters.size(); }

 private:
  static Task<Pass> enter(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

/// Mutual exclusion between coroutines of the io thread; held across suspensions.
class AsyncMutex {
 public:
  using Lock = Gate::Pass;
  Task<Lock> lock() { return gate_.enter(); }

 private:
  Gate gate_{1};
};

}  // namespace kuasar
