#pragma once

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <vector>

namespace kuasar::test {

/// Lays a filter of system calls over this process, for ever.
inline bool lay_filter(const std::vector<sock_filter>& filter) {
  std::vector<sock_filter> instructions = filter;
  const sock_fprog program{static_cast<unsigned short>(instructions.size()), instructions.data()};
  return ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
}

/// The answer of `body`, an exit code, in a child under the filter; 200 or 201 when there
/// is none to be had.
template <typename F>
int in_filtered_child(const std::vector<sock_filter>& filter, F body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) ::_exit(200);
    if (!lay_filter(filter)) ::_exit(201);
    ::syscall(SYS_exit_group, body());
  }
  REQUIRE(pid > 0);
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

}  // namespace kuasar::test
