#include "base/log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/log_entry.h"
#include "base/unique_fd.h"

namespace kuasar::log {
namespace {

struct State {
  Level level = Level::kInfo;
  std::string identifier = "kuasar";
  UniqueFd journal;
  /// stderr by a file description of its own, which does not block: that flag of the one we were
  /// started with is others', too. Absent: stderr itself.
  UniqueFd own_stderr;
  std::atomic<std::uint64_t> unreported{0};
  std::atomic<std::uint64_t> dropped{0};
};

State& state() {
  static State instance;
  return instance;
}

// Of a pipe or a terminal; a file never makes anybody wait for a reader, and a socket has a flag
// for each message.
UniqueFd reopen_stderr() {
  struct stat file {};
  if (::fstat(STDERR_FILENO, &file) != 0) return {};
  if (!S_ISFIFO(file.st_mode) && !S_ISCHR(file.st_mode)) return {};
  return UniqueFd(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

bool write_stderr(const State& now, const std::string& entry) {
  if (now.own_stderr) return ::write(now.own_stderr.get(), entry.data(), entry.size()) >= 0;
  const ssize_t sent =
      ::send(STDERR_FILENO, entry.data(), entry.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent >= 0 || errno != ENOTSOCK) return sent >= 0;
  return ::write(STDERR_FILENO, entry.data(), entry.size()) >= 0;
}

// False when there is no room for it now.
bool put(const State& now, Level level, const About& about, std::string_view text) {
  if (now.journal) {
    const std::string entry = journal_entry(level, now.identifier, about, text);
    const ssize_t sent =
        ::send(now.journal.get(), entry.data(), entry.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0 || errno == EAGAIN || errno == ENOBUFS) return sent >= 0;
  }
  timespec time{};
  ::clock_gettime(CLOCK_REALTIME, &time);
  // What fails otherwise (its reader is gone) has nowhere to complain to.
  return write_stderr(now, text_entry(level, time, about, text)) || errno != EAGAIN;
}

bool stderr_is_journal() {
  struct stat file {};
  return ::fstat(STDERR_FILENO, &file) == 0 && names_stream(std::getenv("JOURNAL_STREAM"), file);
}

UniqueFd connect_journal() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return {};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, "/run/systemd/journal/socket", sizeof address.sun_path - 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

}  // namespace

std::optional<Level> parse_level(std::string_view name) {
  if (name == "error") return Level::kError;
  if (name == "warn" || name == "warning") return Level::kWarning;
  if (name == "info") return Level::kInfo;
  if (name == "debug") return Level::kDebug;
  if (name == "trace") return Level::kTrace;
  return std::nullopt;
}

void init(Level level, std::string_view identifier) {
  state().level = level;
  state().identifier = identifier;
  state().own_stderr = reopen_stderr();
  if (stderr_is_journal()) state().journal = connect_journal();
}

bool enabled(Level level) {
  return level <= state().level;
}

void write(Level level, const About& about, std::string_view text) {
  if (!enabled(level)) return;
  State& now = state();
  if (const std::uint64_t lost = now.unreported.exchange(0); lost > 0) {
    const std::string words =
        fmt::format("{} log lines were lost: their reader did not keep up", lost);
    if (!put(now, Level::kWarning, {}, words)) now.unreported += lost;
  }
  if (put(now, level, about, text)) return;
  ++now.unreported;
  ++now.dropped;
}

std::uint64_t dropped() {
  return state().dropped;
}

}  // namespace kuasar::log
