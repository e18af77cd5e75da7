#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>

#include "base/error.h"

namespace kuasar {

namespace asio = boost::asio;
using IoExecutor = asio::io_context::executor_type;
/// Of an executor that holds an IoExecutor, as all do here: an asio object of what there is many of
/// (connections, processes) is 48 bytes smaller by it, and so is each wait.
inline IoExecutor io_executor(const asio::any_io_executor& executor) {
  return *executor.target<IoExecutor>();
}
using IoTimer =
    asio::basic_waitable_timer<std::chrono::steady_clock,
                               asio::wait_traits<std::chrono::steady_clock>, IoExecutor>;

/// A coroutine of the io thread. Parameters are taken by value; it is awaited exactly once.
template <typename T = void>
using Task = asio::awaitable<T>;

/// Completion token for asio operations: the error becomes a value in `ec`, nothing is thrown.
inline auto as_result(boost::system::error_code& ec) {
  return asio::redirect_error(asio::use_awaitable, ec);
}

/// Error of a failed asio operation.
inline Error asio_error(const boost::system::error_code& ec, std::string_view op,
                        std::string_view what = {}) {
  return Error::from_errno_value(ec.value(), op, what);
}

/// Suspends for `duration`; ends early, without an error, when the coroutine is cancelled.
inline Task<> sleep_for(std::chrono::nanoseconds duration) {
  asio::steady_timer timer(co_await asio::this_coro::executor);
  timer.expires_after(duration);
  boost::system::error_code ec;
  co_await timer.async_wait(as_result(ec));
}

/// True once this coroutine is to end: a wait that begins then would not end by it.
inline Task<bool> is_cancelled() {
  const auto state = co_await asio::this_coro::cancellation_state;
  co_return state.cancelled() != asio::cancellation_type::none;
}

}  // namespace kuasar
