#pragma once

#include <memory>
#include <set>
#include <string>

#include "async/task.h"
#include "base/error.h"

namespace kuasar::sandbox {

/// Asks containerd which sandboxes exist. Lives on the io thread.
class SandboxStore {
 public:
  virtual ~SandboxStore() = default;

  /// Ids of every sandbox that containerd knows, of all sandboxers. kUnavailable when it does not
  /// answer.
  virtual Task<Result<std::set<std::string>>> list() = 0;
  /// A list() that is under way ends soon.
  virtual void cancel() = 0;
};

/// The Store service on containerd's gRPC socket (containerd api/services/sandbox/v1), asked for
/// every namespace that containerd has. A channel lives for one call: it is asked rarely, and its
/// threads cost memory.
std::unique_ptr<SandboxStore> containerd_store(asio::any_io_executor io, std::string socket);

}  // namespace kuasar::sandbox
