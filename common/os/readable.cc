#include "os/readable.h"

#include <fcntl.h>
#include <poll.h>

#include <boost/asio/posix/stream_descriptor.hpp>

#include "async/event.h"
#include "async/task_group.h"
#include "base/log.h"

namespace kuasar::os {
namespace {

bool is_readable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

Task<> set_when_readable(int fd, Event* event) {
  const bool is = co_await readable(fd);
  if (is) event->set();
}

}  // namespace

Task<bool> readable(int fd) {
  const int own = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (own < 0) {
    log::error({}, "{}", Error::from_errno("duplicate", "a descriptor to wait for").message);
    co_return false;
  }
  asio::posix::stream_descriptor watched(co_await asio::this_coro::executor, own);
  while (!is_readable(own)) {
    boost::system::error_code ec;
    co_await watched.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
    if (ec && !is_readable(own)) co_return false;
  }
  co_return true;
}

Task<bool> readable_within(int fd, std::chrono::nanoseconds timeout) {
  if (is_readable(fd)) co_return true;
  Event event;
  TaskGroup watch(co_await asio::this_coro::executor);
  watch.spawn(set_when_readable(fd, &event));
  const bool in_time = co_await event.wait_for(timeout);
  watch.cancel();
  co_await watch.join();
  co_return in_time;
}

}  // namespace kuasar::os
