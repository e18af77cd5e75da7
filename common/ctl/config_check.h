#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "ctl/doctor.h"
#include "ctl/run_program.h"

namespace kuasar::ctl {

using RunProgram = std::function<Result<Ran>(const std::vector<std::string>& argv)>;

/// A sandboxer that is installed.
struct Sandboxer {
  /// "runc" for runc-sandboxer.
  std::string kind;
  std::string program;
};
/// Those beside this program, and in PATH.
std::vector<Sandboxer> find_sandboxers(const Probe& probe, const std::string& own_dir,
                                       std::string_view path);

/// Lets the sandboxers read their configuration (`--dump-config`), which knows all keys: the files
/// that they read by themselves, or `files`. Of those each goes to the sandboxer of its name
/// (runc.toml) or of its directory's (runc.d/10-x.toml); one without either to the first.
std::vector<Finding> check_config(const std::vector<Sandboxer>& sandboxers,
                                  const std::vector<std::string>& files, const RunProgram& run);

}  // namespace kuasar::ctl
