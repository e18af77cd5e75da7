#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "async/task.h"

namespace kuasar {

/// Limits how many holders are inside at a time: `width` in all, `per_key` of one key (a pod). Keys
/// that wait take turns; within a key, the first to come is the first to enter. So no key can make
/// another one wait for longer than a holder of each other key stays. Owned by whoever limits;
/// lives on the io thread; a Pass may outlive it.
class FairGate {
 private:
  struct State;

 public:
  /// A place inside. Destroying it, or give_back(), lets the next one in.
  class Pass {
   public:
    Pass() = default;
    Pass(Pass&&) noexcept = default;
    Pass& operator=(Pass&& other) noexcept {
      std::swap(state_, other.state_);
      std::swap(key_, other.key_);
      return *this;
    }
    ~Pass() { give_back(); }
    void give_back();

   private:
    friend class FairGate;
    Pass(std::shared_ptr<State> state, std::string key)
        : state_(std::move(state)), key_(std::move(key)) {}
    std::shared_ptr<State> state_;
    std::string key_;
  };

  /// What has happened since the construction.
  struct Totals {
    std::uint64_t passes = 0;
    /// Time between enter() and its end, of all passes together.
    std::chrono::nanoseconds waited{0};
  };
  /// The caller that has waited longest.
  struct Oldest {
    std::string key;
    std::chrono::nanoseconds age{0};
  };

  /// Both are at least 1.
  FairGate(std::size_t width, std::size_t per_key);
  FairGate(const FairGate&) = delete;
  FairGate& operator=(const FairGate&) = delete;

  /// Waits for a place. Cancelling the coroutine does not end the wait: every holder leaves at some
  /// time.
  Task<Pass> enter(std::string key) { return enter(state_, std::move(key)); }

  std::size_t waiting() const;
  /// An age of 0 and an empty key when nobody waits.
  Oldest oldest() const;
  const Totals& totals() const;

 private:
  struct Waiter {
    asio::steady_timer* timer;
    std::chrono::steady_clock::time_point since;
    bool granted = false;
  };
  struct Key {
    std::size_t inside = 0;
    std::list<Waiter*> waiters;
  };
  struct State {
    std::size_t free;
    std::size_t per_key;
    std::map<std::string, Key> keys;
    /// The key that entered last: the search for the next one begins behind it.
    std::string last;
    Totals totals;

    bool admits(const Key& key) const { return free > 0 && key.inside < per_key; }
    void leave(const std::string& key);
    void admit_waiting();
  };
  static Task<Pass> enter(std::shared_ptr<State> state, std::string key);

  std::shared_ptr<State> state_;
};

}  // namespace kuasar
