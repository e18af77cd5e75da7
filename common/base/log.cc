#include "base/log.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

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
};

State& state() {
  static State instance;
  return instance;
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
  if (stderr_is_journal()) state().journal = connect_journal();
}

bool enabled(Level level) {
  return level <= state().level;
}

void write(Level level, const About& about, std::string_view text) {
  if (!enabled(level)) return;
  if (state().journal) {
    const std::string entry = journal_entry(level, state().identifier, about, text);
    if (::send(state().journal.get(), entry.data(), entry.size(), MSG_NOSIGNAL) >= 0) return;
  }
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const std::string entry = text_entry(level, now, about, text);
  // A log that cannot be written has nowhere to complain to.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, entry.data(), entry.size());
}

}  // namespace kuasar::log
