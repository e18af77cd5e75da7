#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace kuasar::log {

/// Severity; the values are syslog priorities (sd-daemon(3)) except kTrace, which is below them.
enum class Level { kError = 3, kWarning = 4, kInfo = 6, kDebug = 7, kTrace = 8 };

/// Whom a line is about; each becomes a journald field (KUASAR_SANDBOX=, KUASAR_CONTAINER=) or a
/// bracketed prefix on a terminal. Empty fields are left out.
struct About {
  std::string_view sandbox = {};
  std::string_view container = {};
};

/// "error", "warn" / "warning", "info", "debug", "trace"; nothing for another word.
std::optional<Level> parse_level(std::string_view name);

/// Lines above `level` are dropped. Lines go to journald's native socket when stderr is the
/// journal (JOURNAL_STREAM, systemd.exec(5)), else as text to stderr. Not thread-safe: call once.
void init(Level level, std::string_view identifier);

bool enabled(Level level);
/// Writes one line in one system call. Safe from any thread. Control characters are escaped. Never
/// waits for a reader: a line that finds no room is dropped and counted, and the next one that is
/// written comes after one that says how many were.
void write(Level level, const About& about, std::string_view text);
/// Lines dropped so far.
std::uint64_t dropped();

template <typename... Args>
void line(Level level, const About& about, fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(level)) write(level, about, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  line(Level::kError, about, format, std::forward<Args>(args)...);
}
template <typename... Args>
void warning(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  line(Level::kWarning, about, format, std::forward<Args>(args)...);
}
template <typename... Args>
void info(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  line(Level::kInfo, about, format, std::forward<Args>(args)...);
}
template <typename... Args>
void debug(const About& about, fmt::format_string<Args...> format, Args&&... args) {
  line(Level::kDebug, about, format, std::forward<Args>(args)...);
}

}  // namespace kuasar::log
