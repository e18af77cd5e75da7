#include "os/pump.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>

#include "base/log.h"

namespace kuasar::os {
namespace {

constexpr std::size_t kStep = 64U << 10;
// Other work gets its turn after so many steps without a wait.
constexpr int kBurst = 16;
// What a cut pump still moves while a child goes on writing: more than a pipe holds.
constexpr std::size_t kLastBytes = 1U << 20;

}  // namespace

Pump::Pump(asio::any_io_executor executor, UniqueFd in, UniqueFd out)
    : in_(executor, in.release()), out_(executor, out.release()) {}

// As splice(2): bytes moved, 0 at the end, -1 with errno.
ssize_t Pump::move_some() {
  const int in = in_.native_handle();
  const int out = out_.native_handle();
  if (!copying_) {
    const ssize_t moved =
        ::splice(in, nullptr, out, nullptr, kStep, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (moved >= 0 || errno != EINVAL) return moved;
    copying_ = true;
  }
  if (pending_.empty()) {
    char buffer[kCopyBytes];
    const ssize_t got = ::read(in, buffer, sizeof buffer);
    if (got <= 0) return got;
    pending_.assign(buffer, static_cast<std::size_t>(got));
  }
  const ssize_t written = ::write(out, pending_.data(), pending_.size());
  if (written > 0) pending_.erase(0, static_cast<std::size_t>(written));
  return written;
}

// Nothing moves: because there is nothing, or because it does not fit?
bool Pump::waits_for_out() {
  if (copying_) return !pending_.empty();
  pollfd poll_in{in_.native_handle(), POLLIN, 0};
  return ::poll(&poll_in, 1, 0) > 0;
}

Task<Pump::End> Pump::run() {
  int burst = 0;
  int idle = 0;
  std::size_t last = 0;
  for (;;) {
    const ssize_t moved = move_some();
    if (moved == 0) co_return End::kEof;
    if (moved > 0) {
      idle = 0;
      if (cut_ && (last += static_cast<std::size_t>(moved)) > kLastBytes) co_return End::kCut;
      if (++burst % kBurst == 0) co_await asio::post(asio::use_awaitable);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EIO) co_return End::kEof;
    if (errno != EAGAIN) {
      if (errno != EPIPE) log::warning({}, "{}", Error::from_errno("splice").message);
      co_return End::kBroken;
    }
    if (cut_) co_return End::kCut;
    // The two views on "ready" may differ for a moment; waiting without sleeping would spin then.
    if (++idle > 2) co_await sleep_for(std::chrono::milliseconds(5));
    asio::posix::stream_descriptor& side = waits_for_out() ? out_ : in_;
    const auto readiness = &side == &out_ ? asio::posix::stream_descriptor::wait_write
                                          : asio::posix::stream_descriptor::wait_read;
    if (cut_) continue;
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return End::kCancelled;
    boost::system::error_code ec;
    co_await side.async_wait(readiness, as_result(ec));
    if (ec && !cut_) co_return End::kCancelled;
  }
}

void Pump::cut() {
  cut_ = true;
  boost::system::error_code ec;
  in_.cancel(ec);
  out_.cancel(ec);
}

UniqueFd Pump::take_out() {
  return UniqueFd(out_.release());
}

}  // namespace kuasar::os
