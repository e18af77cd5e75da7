#pragma once

#include <string>
#include <vector>

#include "async/blocking_pool.h"
#include "os/spawner.h"
#include "sandbox/pod_userns.h"

namespace kuasar::sandbox {

/// Starts kuasar-pid-init in its roles (sandbox/exe/pid_init.cc has the contract). On the io
/// thread; a failure leaves no process behind.
struct PodHelper {
  os::Spawner& spawner;
  BlockingPool& pool;
  /// The executable.
  std::string program;
};

/// What a pod with a user namespace gets, as data.
struct UserNamespacePlan {
  /// Of the spawner.
  std::string key;
  PodUserNamespace maps;
  /// The namespace whose owner the pod's user namespace is (CRI's network namespace, T25); empty:
  /// a new one is made with these maps (host network).
  std::string netns_path;
  std::string user_pin;
  /// Namespaces that shall belong to it; empty: the pod has the host's.
  std::string ipc_pin;
  std::string uts_pin;
};

/// Makes and pins them. After a failure some pins may be there: the caller removes them.
/// kFailedPrecondition when the maps of the network namespace's owner are others.
Task<Result<>> make_user_namespaces(PodHelper helper, UserNamespacePlan plan);

/// The init of a pod's shared PID namespace, as data.
struct PidInitPlan {
  std::string key;
  /// Pins of the namespaces that it lives in.
  std::vector<std::string> namespaces;
  /// Pin of the user namespace that its PID namespace shall belong to; empty: the host's.
  std::string user_pin;
};

/// Starts it, and ends when it has confined itself.
Task<Result<os::Process>> start_pid_init(PodHelper helper, PidInitPlan plan);

}  // namespace kuasar::sandbox
