#include "async/fair_gate.h"

#include <algorithm>

namespace kuasar {

FairGate::FairGate(std::size_t width, std::size_t per_key) : state_(std::make_shared<State>()) {
  state_->free = std::max<std::size_t>(1, width);
  state_->per_key = std::max<std::size_t>(1, per_key);
}

void FairGate::Pass::give_back() {
  if (!state_) return;
  std::exchange(state_, nullptr)->leave(key_);
}

void FairGate::State::leave(const std::string& key) {
  ++free;
  const auto found = keys.find(key);
  --found->second.inside;
  if (found->second.inside == 0 && found->second.waiters.empty()) keys.erase(found);
  admit_waiting();
}

// One round over the keys, in their order and beginning behind the last one that entered, for each
// place that is free.
void FairGate::State::admit_waiting() {
  for (bool admitted = true; admitted && free > 0;) {
    admitted = false;
    auto at = keys.upper_bound(last);
    for (std::size_t looked = 0; looked < keys.size(); ++looked, ++at) {
      if (at == keys.end()) at = keys.begin();
      Key& key = at->second;
      if (key.waiters.empty() || !admits(key)) continue;
      Waiter* next = key.waiters.front();
      key.waiters.pop_front();
      ++key.inside;
      --free;
      last = at->first;
      next->granted = true;
      next->timer->cancel();
      admitted = true;
      break;
    }
  }
}

Task<FairGate::Pass> FairGate::enter(std::shared_ptr<State> state, std::string key) {
  ++state->totals.passes;
  Key& own = state->keys[key];
  if (own.waiters.empty() && state->admits(own)) {
    ++own.inside;
    --state->free;
    state->last = key;
    co_return Pass(std::move(state), std::move(key));
  }
  asio::steady_timer timer(co_await asio::this_coro::executor,
                           asio::steady_timer::time_point::max());
  Waiter waiter{&timer, std::chrono::steady_clock::now()};
  own.waiters.push_back(&waiter);
  while (!waiter.granted) {
    boost::system::error_code ec;
    co_await timer.async_wait(as_result(ec));
  }
  state->totals.waited += std::chrono::steady_clock::now() - waiter.since;
  co_return Pass(std::move(state), std::move(key));
}

std::size_t FairGate::waiting() const {
  std::size_t count = 0;
  for (const auto& [name, key] : state_->keys) count += key.waiters.size();
  return count;
}

FairGate::Oldest FairGate::oldest() const {
  Oldest oldest;
  const auto now = std::chrono::steady_clock::now();
  for (const auto& [name, key] : state_->keys) {
    if (key.waiters.empty()) continue;
    const auto age = now - key.waiters.front()->since;
    if (age > oldest.age) oldest = {name, age};
  }
  return oldest;
}

const FairGate::Totals& FairGate::totals() const {
  return state_->totals;
}

}  // namespace kuasar
