#include "os/pidfd_wait.h"

#include <fcntl.h>

#include <boost/asio/posix/stream_descriptor.hpp>

#include "base/log.h"
#include "os/pidfd.h"

namespace kuasar::os {

Task<bool> pidfd_wait(int pidfd) {
  const int fd = ::fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
  if (fd < 0) {
    log::error({}, "{}", Error::from_errno("duplicate", "a pidfd").message);
    co_return false;
  }
  asio::posix::stream_descriptor watched(co_await asio::this_coro::executor, fd);
  while (!pidfd_exited(fd)) {
    boost::system::error_code ec;
    co_await watched.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
    if (ec && !pidfd_exited(fd)) co_return false;
  }
  co_return true;
}

}  // namespace kuasar::os
