#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::ctl {

enum class Command {
  kHelp,
  kVersion,
  kList,
  kInspect,
  kExec,
  kStats,
  kHealth,
  kDoctor,
  kConfigCheck,
  kBench,
};

/// A parsed command line of kuasar-ctl.
struct Args {
  Command command = Command::kHelp;
  /// Sockets of daemons that were named by --socket or --dir; empty: every one that is found.
  std::vector<std::string> sockets;
  bool json = false;
  /// list: ids alone.
  bool quiet = false;

  /// inspect: the timelines.
  bool timing = false;

  /// inspect: a pod; exec: a container.
  std::string object;

  // exec: the command to run; bench: its flags.
  std::vector<std::string> argv;
  std::vector<std::string> env;
  std::string cwd;
  bool input = false;
  bool terminal = false;

  /// doctor: containerd's socket and configuration file; empty: what is found.
  std::string containerd;
  std::string containerd_config;
  /// config check
  std::vector<std::string> files;
};

/// Parses the arguments after argv[0]; pure. Flags may stand before and after the command, up to
/// the "--" of exec. The error is kInvalidArgument (exit status 2) and names the nearest word.
Result<Args> parse_args(const std::vector<std::string>& arguments);

/// The text of --help, at most 100 columns wide.
std::string help_text();
/// The text of --version.
std::string version_text();

}  // namespace kuasar::ctl
