// Zombies that no entry names: what the processes of containers in the host's PID namespace orphan.
// Nobody else reaps them, and a tenant makes as many as it likes.

#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "keeper/exe/keeper.h"

namespace kuasar::keeper {
namespace {

constexpr std::int64_t kPauseMs = 20;
constexpr std::int64_t kGraceMs = 2000;
constexpr unsigned kMaxHeld = 64;

std::int64_t now_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

// One page for what is read from /proc.
char text[4096];

// True when no PID namespace below ours has it: not the init or an exec of a container with one
// (proc_pid_status(5), NSpid).
bool is_of_our_namespace(pid_t pid) {
  const int fd = open(words("/proc/%d/status", pid), O_RDONLY | O_CLOEXEC);
  static char status[2048];
  const ssize_t size = read(fd, status, sizeof status - 1);
  close(fd);
  status[size > 0 ? size : 0] = '\0';
  const char* line = strstr(status, "\nNSpid:\t");
  return line != nullptr && strcspn(line + 8, "\t") > strcspn(line + 8, "\n");
}

}  // namespace

void Keeper::note_runtime_gone() {
  runtime_gone_ms_ = now_ms();
}

// Milliseconds until it is to be called again, -1: when a child has ended.
int Keeper::reap_strays() {
  if (!strays_due_) return -1;
  const std::int64_t now = now_ms();
  if (now < strays_next_ms_) return static_cast<int>(strays_next_ms_ - now);
  strays_next_ms_ = now + kPauseMs;
  strays_due_ = false;
  // One of them may be what an OCI runtime has left, not adopted yet: those that came first stay.
  bool expected = now < runtime_gone_ms_ + kGraceMs;
  for (Entry* entry = table_.begin(); entry != table_.end() && !expected; entry = entry->next())
    expected = (entry->info.flags & wire::kLeavesOrphans) != 0;
  // Where one is reaped the rest of the list may lack others: they are met the next time.
  const int fd = open(words("/proc/self/task/%d/children", getpid()), O_RDONLY | O_CLOEXEC);
  unsigned held = 0;
  pid_t pid = 0;
  for (ssize_t size; (size = read(fd, text, sizeof text)) > 0;) {
    for (const char* at = text; at != text + size; ++at) {
      if (*at != ' ') {
        pid = pid * 10 + (*at - '0');
      } else {
        held += keep_or_reap(std::exchange(pid, 0), expected && held < kMaxHeld);
      }
    }
  }
  close(fd);
  strays_due_ |= held > 0;
  return strays_due_ ? static_cast<int>(kPauseMs) : -1;
}

// True when it is a stray that stays.
bool Keeper::keep_or_reap(pid_t pid, bool keep) {
  siginfo_t info{};
  waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT);
  if (info.si_pid != pid || table_.find_child(pid) != nullptr || !is_of_our_namespace(pid))
    return false;
  if (keep) return true;
  waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG);
  strays_due_ = true;
  return false;
}

}  // namespace kuasar::keeper
