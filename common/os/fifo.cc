#include "os/fifo.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

namespace kuasar::os {
namespace {

// Opened non-blocking, whatever it is to become: a FIFO without a peer would hang us.
Result<UniqueFd> open_end(const std::string& path, int access) {
  if (path.empty() || path.front() != '/') {
    return fail(Code::kInvalidArgument,
                "\"{}\" is not the path of a FIFO; other log drivers are not supported", path);
  }
  UniqueFd fd(::open(path.c_str(), access | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return fail_errno("open", path);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return fail_errno("stat", path);
  if (!S_ISFIFO(st.st_mode)) return fail(Code::kInvalidArgument, "{} is not a FIFO", path);
  return fd;
}

Result<> set_blocking(int fd, bool blocking) {
  const int flags = ::fcntl(fd, F_GETFL);
  const int wanted = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
  if (flags < 0 || ::fcntl(fd, F_SETFL, wanted) != 0) return fail_errno("fcntl", "F_SETFL");
  return {};
}

}  // namespace

Result<OutputFifo> open_output_fifo(const std::string& path) {
  OutputFifo fifo;
  TRY(fifo.reader, open_end(path, O_RDONLY));
  TRY(fifo.writer, open_end(path, O_WRONLY));
  TRY(fifo.workload, open_end(path, O_WRONLY));
  CHECK_OK(set_blocking(fifo.workload.get(), true));
  return fifo;
}

Result<InputFifo> open_input_fifo(const std::string& path, bool ours) {
  InputFifo fifo;
  TRY(fifo.reader, open_end(path, O_RDONLY));
  TRY(fifo.writer, open_end(path, O_WRONLY));
  if (!ours) CHECK_OK(set_blocking(fifo.reader.get(), true));
  return fifo;
}

Result<OutputPipe> make_output_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe");
  OutputPipe pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  CHECK_OK(set_blocking(pipe.reader.get(), false));
  return pipe;
}

std::size_t unread_bytes(int fd) {
  int bytes = 0;
  return ::ioctl(fd, FIONREAD, &bytes) == 0 && bytes > 0 ? static_cast<std::size_t>(bytes) : 0;
}

bool has_reader(int writer) {
  // poll(2): POLLERR at a writing end whose reading end is closed.
  pollfd entry{writer, POLLOUT, 0};
  return ::poll(&entry, 1, 0) < 0 || (entry.revents & POLLERR) == 0;
}

Result<UniqueFd> duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) return fail_errno("duplicate", "a descriptor");
  return copy;
}

}  // namespace kuasar::os
