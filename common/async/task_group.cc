#include "async/task_group.h"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <cstdlib>
#include <exception>
#include <utility>

#include "base/log.h"

namespace kuasar {
namespace {

[[noreturn]] void die_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    log::error({}, "defect: an exception left a coroutine: {}", e.what());
  } catch (...) {
    log::error({}, "defect: an unknown exception left a coroutine");
  }
  std::abort();
}

// Cancellation is a value here: waits return early and the code looks at its own state.
Task<> without_throwing(Task<> task) {
  co_await asio::this_coro::throw_if_cancelled(false);
  co_await std::move(task);
}

}  // namespace

struct TaskGroup::State {
  std::list<asio::cancellation_signal> signals;
  Event* idle = nullptr;
};

TaskGroup::TaskGroup(asio::any_io_executor executor)
    : executor_(std::move(executor)), state_(std::make_shared<State>()) {}

TaskGroup::~TaskGroup() {
  if (!state_->signals.empty()) {
    log::error({}, "defect: a task group was destroyed with {} tasks", state_->signals.size());
  }
}

void TaskGroup::spawn(Task<> child) {
  const auto place = state_->signals.emplace(state_->signals.end());
  asio::co_spawn(executor_, without_throwing(std::move(child)),
                 asio::bind_cancellation_slot(
                     place->slot(), [state = state_, place](const std::exception_ptr& failure) {
                       if (failure) die_of(failure);
                       state->signals.erase(place);
                       if (state->signals.empty() && state->idle != nullptr) state->idle->set();
                     }));
}

void TaskGroup::cancel() {
  // A child may end inside emit() and erase its own entry.
  for (auto it = state_->signals.begin(); it != state_->signals.end();) {
    const auto current = it++;
    current->emit(asio::cancellation_type::terminal);
  }
}

Task<> TaskGroup::join() {
  const auto state = state_;
  while (!state->signals.empty()) {
    Event idle;
    state->idle = &idle;
    co_await idle.wait();
    state->idle = nullptr;
  }
}

std::size_t TaskGroup::size() const {
  return state_->signals.size();
}

void spawn_root(asio::any_io_executor executor, Task<> task) {
  asio::co_spawn(std::move(executor), without_throwing(std::move(task)),
                 [](const std::exception_ptr& failure) {
                   if (failure) die_of(failure);
                 });
}

}  // namespace kuasar
