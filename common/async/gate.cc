#include "async/gate.h"

namespace kuasar {

Gate::Gate(std::size_t width) : state_(std::make_shared<State>()) {
  state_->free = width;
}

void Gate::State::release() {
  if (waiters.empty()) {
    ++free;
    return;
  }
  // The place is handed over, not freed: a newcomer cannot overtake.
  Waiter* next = waiters.front();
  waiters.pop_front();
  next->granted = true;
  next->timer->cancel();
}

Task<Gate::Pass> Gate::enter(std::shared_ptr<State> state) {
  if (state->free > 0) {
    --state->free;
    co_return Pass(std::move(state));
  }
  asio::steady_timer timer(co_await asio::this_coro::executor,
                           asio::steady_timer::time_point::max());
  Waiter waiter{&timer};
  state->waiters.push_back(&waiter);
  while (!waiter.granted) {
    boost::system::error_code ec;
    co_await timer.async_wait(as_result(ec));
  }
  co_return Pass(std::move(state));
}

Task<Gate::Pass> Gate::enter() {
  return enter(state_);
}

}  // namespace kuasar
