#include "os/fifo.h"

#include <fcntl.h>
#include <sys/stat.h>

namespace kuasar::os {

Result<OutputFifo> open_output_fifo(const std::string& path) {
  if (path.front() != '/') {
    return fail(Code::kInvalidArgument,
                "\"{}\" is not the path of a FIFO; other log drivers are not supported", path);
  }
  OutputFifo fifo;
  fifo.reader.reset(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW));
  if (!fifo.reader) return fail_errno("open", path);
  struct stat st {};
  if (::fstat(fifo.reader.get(), &st) != 0) return fail_errno("stat", path);
  if (!S_ISFIFO(st.st_mode)) return fail(Code::kInvalidArgument, "{} is not a FIFO", path);
  // Our reader is there, so this open does not wait.
  fifo.writer.reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fifo.writer) return fail_errno("open", path);
  return fifo;
}

}  // namespace kuasar::os
