// One keeper becomes another without letting go of anything: its tables go into a memfd, the
// descriptors and the children stay where they are, and execve() does the rest.

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/version.h"
#include "keeper/exe/keeper.h"

namespace kuasar::keeper {
namespace {

constexpr std::uint64_t kMagic = 0x5245564f444e4148;
constexpr std::uint64_t kUnderstood = 0x444f4f5453524e55;
constexpr std::uint32_t kHandoverVersion = 1;
constexpr int kCheckMs = 5000;

alignas(16) char check_stack[os::kChildStackSize];

struct Handover {
  std::uint64_t magic;
  std::uint64_t checksum;
  std::uint64_t size;
  std::uint64_t next_connection;
  std::uint64_t file_limit_soft;
  std::uint64_t file_limit_hard;
  std::uint32_t version;
  /// Of the UPGRADE that the new keeper answers.
  std::uint32_t sequence;
  std::uint32_t held;
  std::uint32_t children;
  std::int32_t socket;
  std::int32_t daemon;
  std::int32_t daemon_pidfd;
  std::int32_t daemon_pid;
};

// One for each held descriptor, then one for each child; its name follows.
struct Record {
  wire::ChildInfo child;
  std::int32_t fd;
  std::uint16_t name_size;
  std::uint8_t accepting;
  std::uint8_t untold;
};

std::uint64_t checksum(const char* bytes, std::size_t size) {
  std::uint64_t value = 14695981039346656037U;
  for (std::size_t i = 2 * sizeof value; i < size; ++i) {
    value = (value ^ static_cast<std::uint8_t>(bytes[i])) * 1099511628211U;
  }
  return value;
}

// A whole file as memory, shared or private.
char* map(int fd, std::size_t size, int flags) {
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

char* map_handover(int fd, Handover& out) {
  struct stat st {};
  if (fstat(fd, &st) != 0 || static_cast<std::size_t>(st.st_size) < sizeof out) return nullptr;
  const auto size = static_cast<std::size_t>(st.st_size);
  char* bytes = map(fd, size, MAP_PRIVATE);
  if (bytes == nullptr) return nullptr;
  memcpy(&out, bytes, sizeof out);
  bool good = out.magic == kMagic && out.version == kHandoverVersion && out.size == size &&
              out.checksum == checksum(bytes, size);
  std::size_t at = sizeof out;
  for (std::uint64_t i = 0; good && i < std::uint64_t{out.held} + out.children; ++i) {
    Record record;
    good = size - at >= sizeof record;
    if (!good) break;
    memcpy(&record, bytes + at, sizeof record);
    at += sizeof record;
    good = size - at >= record.name_size && wire::valid_name(bytes + at, record.name_size);
    at += record.name_size;
  }
  if (good && at == size) return bytes;
  munmap(bytes, size);
  return nullptr;
}

void set_close_on_exec(int fd, bool on) {
  if (fd >= 0) fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

}  // namespace

int check_handover(int fd) {
  Handover handover;
  if (map_handover(fd, handover) == nullptr) {
    say(3, "does not understand the handover (it knows version %u)", kHandoverVersion);
    return 1;
  }
  // Exit code 0 alone would be true of many programs.
  return pwrite(fd, &kUnderstood, sizeof kUnderstood, 0) == sizeof kUnderstood ? 0 : 1;
}

void Keeper::close_on_exec(bool on) const {
  for (const int fd : {socket_, self_, daemon_.fd, daemon_.pidfd}) set_close_on_exec(fd, on);
  for (const Held& held : held_) set_close_on_exec(held.fd, on);
  for (const Child& child : children_) set_close_on_exec(child.fd, on);
}

int Keeper::write_handover(std::uint32_t sequence) const {
  std::size_t size = sizeof(Handover);
  for (const Held& held : held_) size += sizeof(Record) + held.name.size;
  for (const Child& child : children_) size += sizeof(Record) + child.name.size;
  const int fd = memfd_create("kuasar-keeper-handover", MFD_CLOEXEC);
  char* bytes = nullptr;
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(size)) != 0 ||
      (bytes = map(fd, size, MAP_SHARED)) == nullptr) {
    if (fd >= 0) close(fd);
    return -1;
  }
  char* at = bytes + sizeof(Handover);
  const auto write = [&](const Record& record, const Name& name) {
    memcpy(at, &record, sizeof record);
    memcpy(at + sizeof record, names_.text(name), name.size);
    at += sizeof record + name.size;
  };
  for (const Held& held : held_) {
    const auto length = static_cast<std::uint16_t>(held.name.size);
    write(Record{{}, held.fd, length, held.accepting, held.untold}, held.name);
  }
  for (const Child& child : children_) {
    write(Record{child.info, child.fd, static_cast<std::uint16_t>(child.name.size), 0, 0},
          child.name);
  }
  Handover handover{kMagic,
                    0,
                    size,
                    next_connection_,
                    file_limit_.rlim_cur,
                    file_limit_.rlim_max,
                    kHandoverVersion,
                    sequence,
                    static_cast<std::uint32_t>(held_.count()),
                    static_cast<std::uint32_t>(children_.count()),
                    socket_,
                    daemon_.fd,
                    daemon_.pidfd,
                    daemon_.pid};
  memcpy(bytes, &handover, sizeof handover);
  handover.checksum = checksum(bytes, size);
  memcpy(bytes, &handover, sizeof handover);
  munmap(bytes, size);
  return fd;
}

// Runs the program on a copy of the handover; words when it is not to be trusted with the real one.
const char* Keeper::try_program(int program, int handover) {
  char file[32];
  snprintf(file, sizeof file, "/proc/self/fd/%d", program);
  const char* argv[] = {"kuasar-keeper", "--check-handover", "3", nullptr};
  char* envp[] = {nullptr};
  os::ChildPlan plan;
  plan.file = file;
  plan.argv = const_cast<char* const*>(argv);
  plan.envp = envp;
  plan.null_fd = null_;
  plan.fd_count = 2;
  plan.fds[0] = {handover, 3};
  plan.fds[1] = {STDERR_FILENO, STDERR_FILENO};
  int pidfd = -1;
  const pid_t pid = os::clone_child(plan, check_stack, pidfd);
  if (pid < 0) return words("cannot %s the new keeper: %s", plan.step, strerror(plan.err));
  pollfd entry{pidfd, POLLIN, 0};
  const bool ended = poll(&entry, 1, kCheckMs) == 1;
  if (!ended) kill(pid, SIGKILL);
  siginfo_t info{};
  while (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED) != 0 && errno == EINTR) {
  }
  close(pidfd);
  if (!ended) return words("its --check-handover does not end within %d ms", kCheckMs);
  if (info.si_code != CLD_EXITED || info.si_status != 0) {
    return words("its --check-handover ended with %d", info.si_status);
  }
  std::uint64_t mark = 0;
  if (pread(handover, &mark, sizeof mark, 0) != sizeof mark || mark != kUnderstood) {
    return "it is no kuasar-keeper: its --check-handover has checked nothing";
  }
  return nullptr;
}

void Keeper::upgrade(Peer& peer, Request& request) {
  const std::uint32_t sequence = request.message.header.sequence;
  const int handover = write_handover(sequence);
  const int copy = write_handover(sequence);
  const char* why =
      handover < 0 || copy < 0 ? "no memory for the handover" : try_program(request.fds[0], copy);
  if (copy >= 0) close(copy);
  if (why == nullptr) {
    char file[32];
    char handover_fd[16];
    char self_fd[16];
    snprintf(file, sizeof file, "/proc/self/fd/%d", request.fds[0]);
    snprintf(handover_fd, sizeof handover_fd, "%d", handover);
    snprintf(self_fd, sizeof self_fd, "%d", self_);
    const char* argv[] = {"kuasar-keeper", "--listen",   path_,   "--handover",
                          handover_fd,     "--fallback", self_fd, nullptr};
    close_on_exec(false);
    set_close_on_exec(handover, false);
    execve(file, const_cast<char* const*>(argv), environ);
    why = words("cannot execute it: %s", strerror(errno));
    close_on_exec(true);
  }
  if (handover >= 0) close(handover);
  say(4, "stays as it is: the new keeper is refused: %s", why);
  refuse(peer, sequence, ENOEXEC, why);
}

bool Keeper::take_over(int fd, bool returned) {
  Handover handover;
  char* bytes = map_handover(fd, handover);
  if (bytes == nullptr) return false;
  const char* at = bytes + sizeof handover;
  for (std::uint32_t i = 0; i < handover.held + handover.children; ++i) {
    Record record;
    memcpy(&record, at, sizeof record);
    const char* name = at + sizeof record;
    at = name + record.name_size;
    if (fcntl(record.fd, F_GETFD) < 0) return false;
    if (i < handover.held) {
      Held* held = held_.add(name, record.name_size);
      if (held == nullptr) return false;
      held->fd = record.fd;
      held->accepting = record.accepting != 0;
      held->untold = record.untold != 0;
    } else {
      Child* child = children_.add(name, record.name_size);
      if (child == nullptr) return false;
      child->fd = record.fd;
      child->info = record.child;
    }
  }
  munmap(bytes, handover.size);
  close(fd);
  next_connection_ = handover.next_connection;
  file_limit_ = {handover.file_limit_soft, handover.file_limit_hard};
  socket_ = handover.socket;
  daemon_ = Peer{handover.daemon, handover.daemon_pidfd, handover.daemon_pid};
  close_on_exec(true);
  if (returned) {
    say(4, "goes on: the new keeper could not take over");
    refuse(daemon_, handover.sequence, ENOEXEC,
           "it could not take over; the keeper goes on as it was");
  } else {
    say(6, "%s takes over %u descriptors and %u children", kuasar::version().data(), handover.held,
        handover.children);
    answer(daemon_, handover.sequence, kuasar::version().data());
  }
  return true;
}

}  // namespace kuasar::keeper
