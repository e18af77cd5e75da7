#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::ctl {

struct Ran {
  int code = 0;
  /// Both its streams, at most 16 MiB.
  std::string output;
};

/// Runs a program to its end, with our environment and no input. kDeadlineExceeded when it takes
/// longer than `timeout`: it is killed then.
Result<Ran> run_program(const std::vector<std::string>& argv,
                        std::chrono::milliseconds timeout = std::chrono::seconds(20));

/// What it printed; an exit code other than 0 is an error with the first line of that.
Result<std::string> output_of(const std::vector<std::string>& argv);

}  // namespace kuasar::ctl
