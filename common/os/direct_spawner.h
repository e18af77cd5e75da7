#pragma once

#include <map>
#include <string>

#include "os/spawn.h"
#include "os/spawner.h"

namespace kuasar::os {

/// Children of this very process. It makes the process a subreaper (prctl(2)), so that the init
/// that an OCI runtime leaves behind becomes our child and its exit status ours to read. When
/// this process dies, the children live on and their exit status is lost: the keeper mends that.
class DirectSpawner : public Spawner {
 public:
  /// Makes the calling process a child subreaper.
  static Result<> become_subreaper();

  Task<Result<Process>> spawn(std::string key, ProcessSpec spec) override;
  Task<Result<Process>> find(std::string key) override;
  Task<Result<Process>> adopt(std::string key, pid_t pid) override;
  Task<ExitStatus> wait(const Process& process) override;
  void acknowledge(const Process& process) override;

 private:
  Result<Process> named(std::string key) const;

  std::map<std::string, Spawned> children_;
};

}  // namespace kuasar::os
