#include "base/log_entry.h"

#include <fmt/format.h>

#include <cstdio>

namespace kuasar::log {
namespace {

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

}  // namespace

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

std::string journal_entry(Level level, std::string_view identifier, const About& about,
                          std::string_view text) {
  const int priority = level == Level::kTrace ? 7 : static_cast<int>(level);
  std::string entry = fmt::format("PRIORITY={}\nSYSLOG_IDENTIFIER={}\n", priority, identifier);
  if (!about.sandbox.empty()) entry += fmt::format("KUASAR_SANDBOX={}\n", escaped(about.sandbox));
  if (!about.container.empty()) {
    entry += fmt::format("KUASAR_CONTAINER={}\n", escaped(about.container));
  }
  return entry + fmt::format("MESSAGE={}\n", escaped(text));
}

std::string text_entry(Level level, const timespec& now, const About& about,
                       std::string_view text) {
  tm utc{};
  ::gmtime_r(&now.tv_sec, &utc);
  char time[32];
  std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%S", &utc);
  std::string entry = fmt::format("{}.{:03}Z {} ", time, now.tv_nsec / 1000000, label(level));
  if (!about.sandbox.empty()) entry += fmt::format("[sandbox={}] ", escaped(about.sandbox));
  if (!about.container.empty()) entry += fmt::format("[container={}] ", escaped(about.container));
  return entry + escaped(text) + "\n";
}

bool names_stream(const char* journal_stream, const struct stat& file) {
  if (journal_stream == nullptr) return false;
  unsigned long long device = 0;
  unsigned long long inode = 0;
  if (std::sscanf(journal_stream, "%llu:%llu", &device, &inode) != 2) return false;
  return file.st_dev == device && file.st_ino == inode;
}

}  // namespace kuasar::log
