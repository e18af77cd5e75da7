#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "keeper/client.h"
#include "ttrpc/server.h"

namespace kuasar::daemon {

/// containerd's connections to the Task API: the keeper accepts and holds them, so that none closes
/// when this daemon dies, and each has a journal of what it asked and was not answered. Owned by
/// the daemon's service; lives on the io thread.
class TaskConnections {
 public:
  TaskConnections(keeper::KeeperClient& keeper, ttrpc::Server& server,
                  std::filesystem::path journals);

  /// Takes over the connections that an earlier daemon served (their unanswered requests run now:
  /// recovery must be over), then those that the keeper accepts on `listener`.
  Result<> begin(int listener);
  /// No more are taken; those that come are held until the next daemon asks.
  void end();

 private:
  void serve(const std::string& name, UniqueFd connection, bool inherited);
  void remove_orphaned_journals() const;
  std::filesystem::path journal_of(const std::string& name) const;

  keeper::KeeperClient& keeper_;
  ttrpc::Server& server_;
  std::filesystem::path journals_;
};

}  // namespace kuasar::daemon
