#pragma once

#include <map>
#include <string>
#include <string_view>

#include "oci/runtime.h"

namespace kuasar::oci {

/// What names an OCI runtime: an absolute path, or a plain name for PATH. kInvalidArgument.
Result<> validate_runtime_name(std::string_view name);

/// The OCI runtimes of a daemon: the configured one, and those that containerd's runtime handlers
/// name (BinaryName). All share one gate, one --root and one timeout. Owned by the sandboxer, lives
/// on the io thread.
class OciRuntimes {
 public:
  /// `spawner` and `gate` must outlive the runtimes and their calls.
  OciRuntimes(os::Spawner& spawner, FairGate& gate, RuntimeConfig config);
  OciRuntimes(const OciRuntimes&) = delete;
  OciRuntimes& operator=(const OciRuntimes&) = delete;

  /// Empty: the configured one. The runtime lives as long as this object; whether its program is
  /// there shows when it is run.
  Result<OciRuntime*> find(const std::string& name);

 private:
  os::Spawner& spawner_;
  FairGate& gate_;
  RuntimeConfig config_;
  std::map<std::string, OciRuntime> by_name_;
};

}  // namespace kuasar::oci
