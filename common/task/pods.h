#pragma once

#include <memory>
#include <string>

#include "async/task.h"
#include "base/error.h"
#include "base/timeline.h"
#include "oci/spec.h"
#include "os/mount.h"

namespace kuasar::state::v1 {
class ContainerState;
class Tombstones;
}  // namespace kuasar::state::v1

namespace kuasar::task {

/// What a pod gives to one of its containers.
struct Attachment {
  /// The container's directory below --dir; exists.
  std::string dir;
  /// The container's spec with the pod's namespaces and files in it.
  oci::Spec spec;
  /// The container has no PID namespace of its own: its end does not end its children (T17).
  bool shared_pid_namespace = false;
  /// The pod's user namespace, for idmapped mounts of the root file system; nothing in it when the
  /// pod has none.
  os::IdMap id_map = {};
};

/// What TaskService needs to know and keep of the pods. Implemented by the sandbox layer above.
/// Runs on the io thread.
class Pods {
 public:
  virtual ~Pods() = default;

  /// Takes a container into a running pod. Errors: kNotFound (no such sandbox),
  /// kFailedPrecondition (not running, or its state cannot be used), what the spec asks for and
  /// the pod refuses. A failure leaves nothing behind. When the spec's pid entry names another
  /// process (TARGET), the caller sees to it that it is a live container of that sandbox, and
  /// afterwards that it still is the same. `timeline` is the container's.
  virtual Task<Result<Attachment>> attach(std::string sandbox_id, std::string container_id,
                                          oci::Spec spec, TimelinePtr timeline) = 0;
  /// Lets go of a container and removes its directory. Unknown ones: success.
  virtual Task<Result<>> detach(std::string sandbox_id, std::string container_id) = 0;
  /// Writes a container's record.
  virtual Result<> save(const state::v1::ContainerState& record) = 0;
  /// Writes down how the last processes of a sandbox ended that were deleted.
  virtual Result<> save(const std::string& sandbox_id, const state::v1::Tombstones& stones) = 0;
};

}  // namespace kuasar::task
