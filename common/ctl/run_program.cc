#include "ctl/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "os/pidfd.h"
#include "os/process_end.h"
#include "os/spawn.h"

namespace kuasar::ctl {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kMaxOutput = 16U << 20;

std::vector<std::string> environment() {
  std::vector<std::string> all;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    all.emplace_back(*variable);
  }
  return all;
}

bool readable_before(int fd, Clock::time_point deadline) {
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd ready{fd, POLLIN, 0};
    const int n = ::poll(&ready, 1, static_cast<int>(left > 0 ? left : 0));
    if (n > 0) return true;
    if (n == 0 || errno != EINTR) return false;
  }
}

/// False when the deadline came first.
bool collect(int fd, Clock::time_point deadline, std::string& output) {
  std::array<char, 65536> buffer{};
  while (readable_before(fd, deadline)) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return true;
    if (output.size() < kMaxOutput) output.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return false;
}

}  // namespace

Result<Ran> run_program(const std::vector<std::string>& argv, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno("pipe");
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  os::ProcessSpec spec;
  spec.argv = argv;
  spec.env = environment();
  spec.fds = {{writer.get(), STDOUT_FILENO}, {writer.get(), STDERR_FILENO}};
  TRY(const os::Spawned child, os::spawn_process(spec));
  writer.reset();
  Ran ran;
  const bool ended =
      collect(reader.get(), deadline, ran.output) && readable_before(child.pidfd.get(), deadline);
  if (!ended) {
    (void)os::pidfd_signal(child.pidfd.get(), SIGKILL);
    pollfd gone{child.pidfd.get(), POLLIN, 0};
    ::poll(&gone, 1, -1);
  }
  ran.code = os::read_process_end(child.pidfd.get(), child.pid).code;
  ::waitpid(child.pid, nullptr, 0);
  if (!ended) {
    return fail(Code::kDeadlineExceeded, "{} did not end within {} s", argv[0],
                std::chrono::duration_cast<std::chrono::seconds>(timeout).count());
  }
  return ran;
}

Result<std::string> output_of(const std::vector<std::string>& argv) {
  TRY(Ran ran, run_program(argv));
  if (ran.code == 0) return std::move(ran.output);
  return fail(Code::kUnknown, "{} ended with {}: {}", argv[0], ran.code,
              ran.output.substr(0, ran.output.find('\n')));
}

}  // namespace kuasar::ctl
