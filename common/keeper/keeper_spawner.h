#pragma once

#include <map>
#include <set>
#include <string>

#include "keeper/client.h"
#include "os/spawner.h"

namespace kuasar::keeper {

/// Processes that are children of the keeper and outlive this daemon; their exit status and its
/// time do, too. Lives on the io thread, not longer than the client.
class KeeperSpawner : public os::Spawner {
 public:
  explicit KeeperSpawner(KeeperClient& client) : client_(client) {}

  Task<Result<os::Process>> spawn(std::string key, os::ProcessSpec spec) override;
  Task<Result<os::Process>> find(std::string key) override;
  Task<Result<os::Process>> adopt(std::string key, pid_t pid) override;
  Task<os::ExitStatus> wait(const os::Process& process) override;
  void acknowledge(const os::Process& process) override;

  /// Reaps zombies of the keeper that no key names, once a second until cancelled: what containers
  /// in the host's PID namespace leave behind. A zombie may be a container's init that is about to
  /// be adopted: it stays until every process that leaves orphans and was named when the zombie was
  /// first seen has been acknowledged, and for one more round.
  Task<> reap_strays();
  /// After recovery: keys of an earlier daemon that nobody has asked for. Ended ones are
  /// acknowledged; those that leave orphans are so when they end; all are logged by name.
  Task<> forget_unclaimed();

 private:
  struct Stray {
    /// Pids of the processes whose acknowledgement it waits for.
    std::set<pid_t> before;
    bool ripe = false;
  };
  void reap_round();

  KeeperClient& client_;
  std::map<pid_t, Stray> strays_;
};

}  // namespace kuasar::keeper
