#include "async/event.h"

#include <boost/asio/post.hpp>
#include <utility>

namespace kuasar {

struct Event::TimerSleeper final : Sleeper {
  TimerSleeper(const asio::any_io_executor& executor, asio::steady_timer::time_point when)
      : timer(executor, when) {}
  void wake() override { timer.cancel(); }

  asio::steady_timer timer;
};

struct Event::Callback::Waiter final : Sleeper, std::enable_shared_from_this<Waiter> {
  Waiter(IoExecutor where, std::function<void()> what) : executor(where), then(std::move(what)) {}

  // Later, when whoever sets the event has finished what it is doing.
  void wake() override {
    leave();
    asio::post(executor, [self = shared_from_this()] {
      if (const std::function<void()> call = std::exchange(self->then, nullptr)) call();
    });
  }
  void leave() {
    for (const auto& [state, place] : places) state->sleepers.erase(place);
    places.clear();
  }

  IoExecutor executor;
  std::function<void()> then;
  std::vector<std::pair<std::shared_ptr<State>, Sleepers::iterator>> places;
};

Event::Callback& Event::Callback::operator=(Callback&& other) noexcept {
  std::swap(waiter_, other.waiter_);
  return *this;
}

Event::Callback::~Callback() {
  if (!waiter_) return;
  waiter_->leave();
  waiter_->then = nullptr;
}

Event::Event() : state_(std::make_shared<State>()) {}

Event::~Event() {
  state_->gone = true;
  wake(*state_);
}

void Event::wake(State& state) {
  // One may leave when it is woken.
  for (auto it = state.sleepers.begin(); it != state.sleepers.end();) {
    Sleeper& sleeper = **it++;
    sleeper.wake();
  }
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
  TimerSleeper sleeper(co_await asio::this_coro::executor, when);
  const auto place = state->sleepers.insert(state->sleepers.end(), &sleeper);
  boost::system::error_code ec;
  co_await sleeper.timer.async_wait(as_result(ec));
  state->sleepers.erase(place);
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
  TimerSleeper sleeper(co_await asio::this_coro::executor, asio::steady_timer::time_point::max());
  for (const auto& state : states) state->sleepers.push_back(&sleeper);
  boost::system::error_code ec;
  co_await sleeper.timer.async_wait(as_result(ec));
  for (const auto& state : states) state->sleepers.remove(&sleeper);
}

Task<> Event::wait_any(std::vector<const Event*> events) {
  std::vector<std::shared_ptr<State>> states;
  for (const Event* event : events) states.push_back(event->state_);
  return wait_states(std::move(states));
}

Event::Callback Event::when_any(const asio::any_io_executor& executor,
                                std::vector<const Event*> events, std::function<void()> then) {
  auto waiter = std::make_shared<Callback::Waiter>(io_executor(executor), std::move(then));
  bool now = false;
  waiter->places.reserve(events.size());
  for (const Event* event : events) {
    const std::shared_ptr<State>& state = event->state_;
    now = now || state->set;
    waiter->places.emplace_back(state, state->sleepers.insert(state->sleepers.end(), waiter.get()));
  }
  if (now) waiter->wake();
  return Callback(std::move(waiter));
}

}  // namespace kuasar
