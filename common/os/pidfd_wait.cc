#include "os/pidfd_wait.h"

#include "os/readable.h"

namespace kuasar::os {

// A pidfd is readable once its process has ended (pidfd_open(2)).
Task<bool> pidfd_wait(int pidfd) {
  return readable(pidfd);
}

Task<bool> pidfd_wait_for(int pidfd, std::chrono::nanoseconds timeout) {
  return readable_within(pidfd, timeout);
}

}  // namespace kuasar::os
