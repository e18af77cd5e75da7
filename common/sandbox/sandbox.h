#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "async/task.h"
#include "base/error.h"
#include "base/timeline.h"
#include "oci/spec.h"
#include "os/spawner.h"
#include "task/pods.h"

namespace kuasar::state::v1 {
class SandboxState;
}
namespace runtime::v1 {
class PodSandboxConfig;
}

namespace kuasar::sandbox {

/// One pod of one isolation technology: what there is of it in the kernel. SandboxManager keeps
/// its state machine, its record and its mutex; calls come one at a time under that mutex, except
/// wait_exit. Lives on the io thread.
class Sandbox {
 public:
  virtual ~Sandbox() = default;

  /// Makes the pod that its configuration asks for, and notes its steps. A failure leaves nothing
  /// behind.
  virtual Task<Result<>> start(std::shared_ptr<const runtime::v1::PodSandboxConfig> config,
                               TimelinePtr timeline) = 0;
  /// Takes everything away that start() and attach() made; containers are gone already. Repeats,
  /// and a sandbox that never started: success.
  virtual Task<Result<>> stop() = 0;
  /// Puts the pod's namespaces and files into a container's spec. `timeline` is the container's.
  virtual Task<Result<task::Attachment>> attach(std::string container_id, std::string dir,
                                                oci::Spec spec, TimelinePtr timeline) = 0;
  /// Lets go of a container; it may be unknown.
  virtual Task<> detach(std::string container_id) = 0;
  /// Whether there is a process whose end is the sandbox's; attach() may bring it.
  virtual bool has_process() const = 0;
  /// Ends when the sandbox that has a process has died of itself, with how. Cancelled, or ended by
  /// stop(): `known` is false.
  virtual Task<os::ExitStatus> wait_exit() = 0;

  /// The pod's own namespaces, as far as they can be joined by a path: for those who look.
  virtual std::vector<oci::NamespaceEntry> namespaces() const { return {}; }
  /// A process that is in all of them; 0 when there is none.
  virtual pid_t pid() const { return 0; }

  /// Adds the technology's facts to the record.
  virtual void save(state::v1::SandboxState& record) const = 0;
  /// Takes over a running sandbox of an earlier daemon.
  virtual Task<Result<>> recover() = 0;
};

/// Makes the Sandbox of one pod from its record. The record outlives the sandbox, but for its
/// `config`, which is there during make() only.
class SandboxFactory {
 public:
  virtual ~SandboxFactory() = default;

  /// Refuses what this technology does not do, by the name of the field. Nothing is made yet.
  virtual Result<> check(const state::v1::SandboxState& record) const = 0;
  virtual std::unique_ptr<Sandbox> make(const state::v1::SandboxState& record) = 0;
};

}  // namespace kuasar::sandbox
