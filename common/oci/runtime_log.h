#pragma once

#include <string>
#include <string_view>

namespace kuasar::oci {

/// The `msg` of the last object of level "error", "fatal" or "panic" in a runtime's JSON log,
/// runc's of one line or crun's of several; lines that are something else are passed over, whatever
/// they hold. Empty when there is none.
std::string last_error_message(std::string_view log);

/// The last line that is not blank, whatever it holds, as printable ASCII; empty when there is
/// none.
std::string last_words(std::string_view log);

/// The first error that criu wrote into its log, without time and place in criu's source: what came
/// of it follows. As printable ASCII; empty when there is none.
std::string first_criu_error(std::string_view log);

/// The end of a log, at most 64 KiB however large it is. An unreadable log is an empty one.
std::string read_log_tail(const std::string& path);

}  // namespace kuasar::oci
