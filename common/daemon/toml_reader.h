#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"

namespace kuasar::daemon {

/// A TOML value of a type that no key of ours has (a float, a date, an array, an empty table).
struct OtherToml {
  /// In words, with the article: "an array".
  std::string type;

  bool operator==(const OtherToml&) const = default;
};

using ConfigValue = std::variant<bool, std::int64_t, std::string, OtherToml>;

/// One `key = value` of a configuration file and where it stands.
struct ConfigEntry {
  /// {"section", "key"}; a top-level key has one part.
  std::vector<std::string> path;
  ConfigValue value;
  std::string file;
  /// Counted from one.
  unsigned line = 0;
};

/// All entries of one TOML text, by line; `file` is for messages. A syntax error is
/// kInvalidArgument and starts with "file:line: ".
Result<std::vector<ConfigEntry>> parse_toml(const std::string& text, const std::string& file);

/// The entries of a configuration file and of its drop-ins: /etc/kuasar/runc.toml, then
/// /etc/kuasar/runc.d/NN-*.toml in byte order of their names. Hidden files and what does not end
/// in .toml are passed over, any other name is kInvalidArgument. A missing main file is an error
/// only if `must_exist`; a missing drop-in directory never is.
Result<std::vector<ConfigEntry>> read_config_files(const std::filesystem::path& main_file,
                                                   bool must_exist);

}  // namespace kuasar::daemon
