#include "task/stdio.h"

#include "os/fifo.h"

namespace kuasar::task {
namespace {

Result<OutputStream> open_stream(const std::string& path) {
  if (path.empty()) return OutputStream{};
  TRY(os::OutputFifo fifo, os::open_output_fifo(path));
  return OutputStream{std::move(fifo.reader), std::move(fifo.writer)};
}

}  // namespace

Result<Stdio> Stdio::open(const StdioPaths& paths) {
  Stdio stdio;
  TRY(stdio.stdout_, open_stream(paths.stdout_path));
  TRY(stdio.stderr_, open_stream(paths.stderr_path));
  return stdio;
}

void Stdio::drop_process_ends() {
  stdout_.process_end.reset();
  stderr_.process_end.reset();
}

}  // namespace kuasar::task
