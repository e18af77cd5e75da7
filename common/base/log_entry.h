#pragma once

#include <sys/stat.h>

#include <ctime>
#include <string>
#include <string_view>

#include "base/log.h"

// What a log line looks like, and which of the two ways it takes: pure functions of log.cc.

namespace kuasar::log {

/// Control characters in C's way, so that one line stays one line whatever a message quotes.
std::string escaped(std::string_view text);

/// A line in journald's native protocol, a field per line; `identifier` is the program.
std::string journal_entry(Level level, std::string_view identifier, const About& about,
                          std::string_view text);

/// The same for a terminal or a file: time in UTC, level, [sandbox=] and [container=], message.
std::string text_entry(Level level, const timespec& now, const About& about, std::string_view text);

/// Whether JOURNAL_STREAM's value ("device:inode", systemd.exec(5)) names this file. The variable
/// is inherited by programs whose stderr was redirected since: being set says nothing.
bool names_stream(const char* journal_stream, const struct stat& file);

}  // namespace kuasar::log
