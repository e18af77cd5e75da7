#include "async/event.h"

#include <utility>

namespace kuasar {

Event::Event() : state_(std::make_shared<State>()) {}

Event::~Event() {
  state_->gone = true;
  wake(*state_);
}

void Event::wake(State& state) {
  for (asio::steady_timer* waiter : state.waiters) waiter->cancel();
}

void Event::set() {
  if (state_->set) return;
  state_->set = true;
  wake(*state_);
}

bool Event::is_set() const {
  return state_->set;
}

Task<bool> Event::wait_until(std::shared_ptr<State> state, asio::steady_timer::time_point when) {
  if (state->set || state->gone) co_return state->set;
  asio::steady_timer timer(co_await asio::this_coro::executor, when);
  const auto place = state->waiters.insert(state->waiters.end(), &timer);
  boost::system::error_code ec;
  co_await timer.async_wait(as_result(ec));
  state->waiters.erase(place);
  co_return state->set;
}

Task<bool> Event::wait() const {
  return wait_until(state_, asio::steady_timer::time_point::max());
}

Task<bool> Event::wait_for(std::chrono::nanoseconds timeout) const {
  return wait_until(state_, asio::steady_timer::clock_type::now() + timeout);
}

Task<> Event::wait_states(std::vector<std::shared_ptr<State>> states) {
  for (const auto& state : states) {
    if (state->set || state->gone) co_return;
  }
  asio::steady_timer timer(co_await asio::this_coro::executor,
                           asio::steady_timer::time_point::max());
  for (const auto& state : states) state->waiters.push_back(&timer);
  boost::system::error_code ec;
  co_await timer.async_wait(as_result(ec));
  for (const auto& state : states) state->waiters.remove(&timer);
}

Task<> Event::wait_any(std::vector<const Event*> events) {
  std::vector<std::shared_ptr<State>> states;
  for (const Event* event : events) states.push_back(event->state_);
  return wait_states(std::move(states));
}

}  // namespace kuasar
