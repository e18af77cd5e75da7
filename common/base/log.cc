#include "base/log.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

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

const char* label(Level level) {
  switch (level) {
    case Level::kError: return "ERROR";
    case Level::kWarning: return "WARN ";
    case Level::kInfo: return "INFO ";
    case Level::kDebug: return "DEBUG";
    case Level::kTrace: return "TRACE";
  }
  return "INFO ";
}

// stderr is the journal when JOURNAL_STREAM names its device and inode (systemd.exec(5)).
bool stderr_is_journal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  if (stream == nullptr) return false;
  unsigned long long device = 0;
  unsigned long long inode = 0;
  if (std::sscanf(stream, "%llu:%llu", &device, &inode) != 2) return false;
  struct stat st {};
  return ::fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
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

// One line stays one line, whatever a message quotes.
std::string escaped(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

std::string journal_entry(Level level, const About& about, const std::string& text) {
  const int priority = level == Level::kTrace ? 7 : static_cast<int>(level);
  std::string entry =
      fmt::format("PRIORITY={}\nSYSLOG_IDENTIFIER={}\n", priority, state().identifier);
  if (!about.sandbox.empty()) entry += fmt::format("KUASAR_SANDBOX={}\n", escaped(about.sandbox));
  if (!about.container.empty()) {
    entry += fmt::format("KUASAR_CONTAINER={}\n", escaped(about.container));
  }
  return entry + fmt::format("MESSAGE={}\n", text);
}

std::string text_entry(Level level, const About& about, const std::string& text) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  ::gmtime_r(&now.tv_sec, &utc);
  char time[32];
  std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
  std::string entry = fmt::format("{}.{:03}Z {} ", time, now.tv_nsec / 1000000, label(level));
  if (!about.sandbox.empty()) entry += fmt::format("[sandbox={}] ", escaped(about.sandbox));
  if (!about.container.empty()) entry += fmt::format("[container={}] ", escaped(about.container));
  return entry + text + "\n";
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
  const std::string clean = escaped(text);
  if (state().journal) {
    const std::string entry = journal_entry(level, about, clean);
    if (::send(state().journal.get(), entry.data(), entry.size(), MSG_NOSIGNAL) >= 0) return;
  }
  const std::string entry = text_entry(level, about, clean);
  // A log that cannot be written has nowhere to complain to.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, entry.data(), entry.size());
}

}  // namespace kuasar::log
