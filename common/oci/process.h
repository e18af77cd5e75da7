#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "oci/spec.h"

namespace kuasar::oci {

/// Checks the process of an exec (an OCI Process as JSON), which comes from outside, and makes the
/// text for the runtime of it: what we do not know is refused by its name, `terminal` is set as
/// the call says. Everything else stays as it was. kInvalidArgument with the field's name
/// ("process.args: must not be empty"), kUnimplemented for a field that no runtime knows.
Result<std::string> exec_process(std::string_view json, bool terminal);

/// An OCI Process as far as a driver needs it that starts processes itself.
struct ProcessView {
  struct Limit {
    /// As in the specification: "RLIMIT_NOFILE".
    std::string type;
    std::uint64_t soft = 0;
    std::uint64_t hard = 0;
    bool operator==(const Limit&) const = default;
  };
  std::vector<std::string> args;
  std::vector<std::string> env;
  std::string cwd;
  User user;
  std::vector<std::uint32_t> groups;
  std::optional<std::uint32_t> umask;
  std::vector<Limit> limits;
};
/// Reads the JSON of a process. kInvalidArgument with the field's name.
Result<ProcessView> parse_process(std::string_view json);

/// What a process differs in from the one that its container was made for.
struct Command {
  std::vector<std::string> args;
  /// Added, "NAME=value" each.
  std::vector<std::string> env;
  /// Empty: the same.
  std::string cwd;
  bool terminal = false;
};

/// An OCI Process for another command in a container with this config.json: its user, capabilities
/// and limits, as CRI does it.
Result<std::string> process_like(std::string_view config, const Command& command);

}  // namespace kuasar::oci
