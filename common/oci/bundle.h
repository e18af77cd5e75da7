#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "oci/spec.h"

namespace kuasar::oci {

/// What containerd puts into a task's bundle directory, as far as we read it. A value.
struct Bundle {
  /// Absolute, without a trailing slash.
  std::string path;
  /// The content of `<bundle>/sandbox` (containerd core/runtime/v2/shim_manager.go), validated.
  std::string sandbox_id;
  /// The content of `<bundle>/config.json`.
  Spec spec;
};

/// Reads a bundle without following links and without writing. The path must be absolute and
/// without "..", its files regular ones. kNotFound when the directory is missing,
/// kFailedPrecondition when it belongs to no sandbox, else an error that names the file.
/// Blocks for two small reads (config.json: at most kMaxSpecBytes).
Result<Bundle> open_bundle(std::string_view path);

}  // namespace kuasar::oci
