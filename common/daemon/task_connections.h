#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "keeper/client.h"
#include "task/task_service.h"
#include "ttrpc/file_journal.h"
#include "ttrpc/server.h"

namespace kuasar::daemon {

/// containerd's connections to the Task API: the keeper accepts and holds them, so that none closes
/// when this daemon dies, and each has a journal of what it asked and was not answered. Owned by
/// the daemon's service; lives on the io thread.
class TaskConnections {
 public:
  /// `crashed`: the daemon before this one crashed (base/crash_mark.h).
  TaskConnections(keeper::KeeperClient& keeper, ttrpc::Server& server,
                  std::filesystem::path journals, bool crashed);

  /// Takes over the connections that an earlier daemon served (their unanswered requests run now:
  /// recovery must be over), then those that the keeper accepts on `listener`. Returns the former,
  /// for TaskService::connections_are_back().
  Result<task::HeldConnections> begin(int listener);
  /// No more are taken; those that come are held until the next daemon asks.
  void end();

 private:
  using JournalResult = Result<std::unique_ptr<ttrpc::FileJournal>>;

  /// nullptr when it had to be closed.
  std::shared_ptr<ttrpc::Peer> serve(const std::string& name, UniqueFd connection);
  /// The journal keeps the connection in the keeper until it is discarded.
  JournalResult open_journal(const std::string& name);
  void discard(const std::string& name, JournalResult journal);
  void remove_orphaned_journals() const;

  keeper::KeeperClient& keeper_;
  ttrpc::Server& server_;
  std::filesystem::path journals_;
  bool crashed_;
};

}  // namespace kuasar::daemon
