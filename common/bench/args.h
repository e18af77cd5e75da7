#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "bench/bench.h"

namespace kuasar::bench {

/// A parsed command line of kuasar-bench.
struct Args {
  enum class Action { kMeasure, kHelp, kVersion };
  Action action = Action::kMeasure;
  Options options;
  /// Where the results go; empty: only to standard output.
  std::filesystem::path out;
};

/// Parses the arguments after argv[0]; pure. kInvalidArgument names the nearest flag.
Result<Args> parse_args(const std::vector<std::string>& arguments);
/// The text of --help, at most 100 columns wide.
std::string help_text();

}  // namespace kuasar::bench
