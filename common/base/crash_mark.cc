#include "base/crash_mark.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace kuasar {
namespace {

// For the handler; the process's own until its end.
int mark = -1;

// Async-signal-safe. SA_RESETHAND has put the usual effect back.
void on_crash(int signal) {
  [[maybe_unused]] const ssize_t ignored = ::write(mark, "1", 1);
  ::raise(signal);
}

}  // namespace

Result<bool> take_crash_mark(const std::filesystem::path& file) {
  UniqueFd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return fail_errno("open", file.native());
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return fail_errno("stat", file.native());
  if (st.st_size > 0 && ::ftruncate(fd.get(), 0) != 0) return fail_errno("truncate", file.native());
  mark = fd.release();
  struct sigaction action {};
  action.sa_handler = on_crash;
  action.sa_flags = SA_RESETHAND | SA_NODEFER;
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
    ::sigaction(signal, &action, nullptr);
  }
  return st.st_size > 0;
}

}  // namespace kuasar
