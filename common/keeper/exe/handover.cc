// One keeper becomes another without letting go of anything: its state and its table go into a
// memfd, the descriptors and the children stay where they are, and execve() does the rest.

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/version.h"
#include "keeper/exe/keeper.h"

namespace kuasar::keeper {
namespace {

constexpr std::uint64_t kUnderstood = 0x444f4f5453524e55;
constexpr unsigned kCheckSeconds = 5;

}  // namespace

bool Keeper::write_handover() const {
  const std::string_view table = table_.bytes();
  const int fd = memfd_create("kuasar-keeper-handover", MFD_CLOEXEC);
  const bool written =
      pwrite(fd, &state_, sizeof state_, 0) == sizeof state_ &&
      pwrite(fd, table.data(), table.size(), sizeof state_) == static_cast<ssize_t>(table.size()) &&
      dup2(fd, STDIN_FILENO) == STDIN_FILENO;
  close(fd);
  return written;
}

bool Keeper::read_handover() {
  return pread(STDIN_FILENO, &state_, sizeof state_, 0) == sizeof state_ &&
         state_.format == State::kFormat && table_.read(STDIN_FILENO, sizeof state_);
}

int Keeper::check_handover() {
  // Exit code 0 alone would be true of many programs.
  constexpr ssize_t kSize = sizeof kUnderstood;
  if (read_handover() && pwrite(STDIN_FILENO, &kUnderstood, kSize, 0) == kSize) return 0;
  say("does not understand the other keeper's handover");
  return 1;
}

// Of all that a new keeper goes on with; false when one of them is not open.
bool Keeper::close_on_exec(bool on) const {
  bool open = true;
  const int flag = on ? FD_CLOEXEC : 0;
  const auto set = [&](int fd) { open &= fd < 0 || fcntl(fd, F_SETFD, flag) == 0; };
  for (const int fd : {state_.socket, state_.old, state_.daemon.fd, state_.daemon.pidfd}) set(fd);
  for (Entry* entry = table_.begin(); entry != table_.end(); entry = entry->next()) set(entry->fd);
  return open;
}

// Returns when it is not possible.
void Keeper::execute(int program, const char* option) const {
  const char* argv[] = {"kuasar-keeper", "--listen", path_, option, nullptr};
  execve(words("/proc/self/fd/%d", program), const_cast<char* const*>(argv), environ);
}

// Runs the program on a copy of the handover; words when it is not to be trusted with the real one.
const char* Keeper::try_program(int program) const {
  if (!write_handover()) return "no memory or no descriptor for a handover";
  const pid_t child = fork();
  if (child == 0) {
    alarm(kCheckSeconds);
    execute(program, "--check-handover");
    say(words("cannot execute the new keeper: %s", strerror(errno)));
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return "cannot fork";
  if (WIFSIGNALED(status)) return words("signal %d ended its --check-handover", WTERMSIG(status));
  if (status != 0) return words("its --check-handover ended with %d", WEXITSTATUS(status));
  std::uint64_t mark = 0;
  const bool read = pread(STDIN_FILENO, &mark, sizeof mark, 0) == sizeof mark;
  return read && mark == kUnderstood ? nullptr : "its --check-handover has checked nothing";
}

Reply Keeper::upgrade(Request& request) {
  const int program = request.packet.fds[0];
  state_.sequence = request.message.header.sequence;
  state_.old = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  const char* why = try_program(program);
  if (why == nullptr) {
    close_on_exec(false);
    if (write_handover()) execute(program, "--handover");
    why = words("cannot hand over to it: %s", strerror(errno));
    close_on_exec(true);
  }
  dup2(null_, STDIN_FILENO);
  close(state_.old);
  say("stays as it is: the new keeper is refused");
  return refusal(ENOEXEC, why);
}

int Keeper::take_over(bool returned) {
  if (!read_handover() || !close_on_exec(true)) {
    say("cannot take over from the keeper that executed it");
    close_on_exec(false);
    if (!returned) execute(state_.old, "--returned");
    return 1;
  }
  close(state_.old);
  const Reply reply = returned ? refusal(ENOEXEC, "it could not take over; all is as it was")
                               : Reply{.name = kuasar::version()};
  say(returned ? "goes on: the new keeper could not take over" : "has taken over");
  send(state_.daemon, wire::kAnswer, state_.sequence, reply);
  return run();
}

}  // namespace kuasar::keeper
