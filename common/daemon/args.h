#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::daemon {

/// What tells one sandboxer's command line and configuration from another's.
struct DaemonDefaults {
  /// The program, e.g. "runc-sandboxer".
  std::string name;
  /// The technology in one word, e.g. "runc".
  std::string kind;
  std::string listen;
  std::string dir;
  std::string config;
};

/// A parsed command line. A value that was not given is absent: then the configuration file or
/// the default decides.
struct Args {
  enum class Action { kRun, kDumpConfig, kHelp, kVersion };
  Action action = Action::kRun;
  std::optional<std::string> listen;
  std::optional<std::string> dir;
  std::optional<std::string> config;
  std::optional<std::string> log_level;
  std::optional<std::string> containerd;
  std::optional<std::string> keeper;
};

/// Parses the arguments after argv[0]; pure. "--flag value" and "--flag=value" are the same, a
/// flag given twice counts the last time, --help and --version win over everything else. The
/// error is kInvalidArgument (exit status 2) and names the nearest flag for one that is unknown.
Result<Args> parse_args(const DaemonDefaults& defaults, const std::vector<std::string>& arguments);

/// The text of --help, at most 100 columns wide.
std::string help_text(const DaemonDefaults& defaults);

/// The text of --version, e.g. "runc-sandboxer 0.1.0 (Kuasar)".
std::string version_text(const DaemonDefaults& defaults);

}  // namespace kuasar::daemon
