#include "os/readable.h"

#include <fcntl.h>
#include <poll.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <utility>

#include "async/event.h"
#include "async/task_group.h"
#include "base/log.h"
#include "base/unique_fd.h"

namespace kuasar::os {
namespace {

bool is_readable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

// -1 when there is none to be had.
int duplicate(int fd) {
  const int own = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (own < 0) {
    log::error({}, "{}", Error::from_errno("duplicate", "a descriptor to wait for").message);
  }
  return own;
}

}  // namespace

struct WhenReadable::Impl : std::enable_shared_from_this<Impl> {
  Impl(const asio::any_io_executor& executor, std::function<void()> call)
      : descriptor(io_executor(executor)), then(std::move(call)) {}

  void wait() {
    descriptor.async_wait(asio::posix::descriptor_base::wait_read,
                          [self = shared_from_this()](const boost::system::error_code& ec) {
                            if (!self->then) return;
                            if (!ec && !is_readable(self->descriptor.native_handle())) {
                              return self->wait();
                            }
                            self->end();
                          });
  }
  void end() {
    boost::system::error_code ec;
    descriptor.close(ec);
    std::exchange(then, nullptr)();
  }

  asio::posix::basic_stream_descriptor<IoExecutor> descriptor;
  std::function<void()> then;
};

WhenReadable::WhenReadable(const asio::any_io_executor& executor, int fd,
                           std::function<void()> then)
    : impl_(std::make_shared<Impl>(executor, std::move(then))) {
  boost::system::error_code ec;
  UniqueFd own(duplicate(fd));
  if (own) impl_->descriptor.assign(own.get(), ec);
  if (own && !ec) {
    own.release();
    impl_->wait();
  } else {
    asio::post(executor, [impl = impl_] {
      if (impl->then) impl->end();
    });
  }
}

WhenReadable::~WhenReadable() {
  impl_->then = nullptr;
  boost::system::error_code ec;
  impl_->descriptor.close(ec);
}

Task<bool> readable(int fd) {
  if (is_readable(fd)) co_return true;
  const int own = duplicate(fd);
  if (own < 0) co_return false;
  asio::posix::stream_descriptor watched(co_await asio::this_coro::executor, own);
  while (!is_readable(own)) {
    boost::system::error_code ec;
    co_await watched.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
    if (ec && !is_readable(own)) co_return false;
  }
  co_return true;
}

namespace {

Task<> set_when_readable(int fd, Event* event) {
  const bool is = co_await readable(fd);
  if (is) event->set();
}

}  // namespace

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
