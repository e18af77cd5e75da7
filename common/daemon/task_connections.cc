#include "daemon/task_connections.h"

#include <sys/socket.h>

#include <system_error>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "os/pidfd.h"

namespace kuasar::daemon {
namespace {

constexpr const char* kKind = "task";
constexpr std::string_view kPrefix = "task/";

// The pid is of the time of connect(2): whose connection is still open afterwards had it when we
// looked.
ttrpc::PeerProcess process_of(int connection) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return {};
  const Result<unsigned long long> start = os::process_start_time(peer.pid);
  if (!start || ttrpc::hung_up(connection)) return {};
  return {peer.pid, *start};
}

}  // namespace

TaskConnections::TaskConnections(keeper::KeeperClient& keeper, ttrpc::Server& server,
                                 std::filesystem::path journals, bool crashed)
    : keeper_(keeper), server_(server), journals_(std::move(journals)), crashed_(crashed) {}

Result<task::HeldConnections> TaskConnections::begin(int listener) {
  CHECK_OK(make_dir(journals_));
  keeper_.on_accept([this](std::string name, UniqueFd fd) { serve(name, std::move(fd)); });
  task::HeldConnections held;
  for (const std::string& name : keeper_.held(kPrefix)) {
    TRY(UniqueFd fd, keeper_.get(name));
    const std::uint64_t id = ttrpc::connection_id(fd.get()).value_or(0);
    if (ttrpc::hung_up(fd.get())) {
      held[id] = nullptr;
      discard(name, open_journal(name));
    } else if (std::shared_ptr<ttrpc::Peer> peer = serve(name, std::move(fd))) {
      held[id] = std::move(peer);
    }
  }
  remove_orphaned_journals();
  // Those of connections to come are new.
  crashed_ = false;
  CHECK_OK(keeper_.accept(kKind, listener));
  return held;
}

void TaskConnections::end() {
  keeper_.on_accept({});
}

std::shared_ptr<ttrpc::Peer> TaskConnections::serve(const std::string& name, UniqueFd connection) {
  JournalResult journal = open_journal(name);
  std::string why;
  if (!journal) {
    why = journal.error().message;
  } else if ((*journal)->torn()) {
    why = "an earlier daemon died inside one of its frames";
  }
  if (!why.empty()) {
    log::error({},
               "task connection {} cannot be continued and is closed: {}; containerd gives its "
               "container up",
               name, why);
    discard(name, std::move(journal));
    return nullptr;
  }
  const ttrpc::PeerProcess process = process_of(connection.get());
  return server_.adopt(std::move(connection), std::move(*journal), process);
}

TaskConnections::JournalResult TaskConnections::open_journal(const std::string& name) {
  return ttrpc::FileJournal::open(
      journals_ / name.substr(kPrefix.size()), [this, name] { keeper_.drop(name); }, crashed_);
}

void TaskConnections::discard(const std::string& name, JournalResult journal) {
  if (journal) {
    (*journal)->discard();
  } else {
    keeper_.drop(name);
  }
}

// Of connections that died with a keeper.
void TaskConnections::remove_orphaned_journals() const {
  std::error_code ec;
  for (const auto& file : std::filesystem::directory_iterator(journals_, ec)) {
    const std::string name = std::string(kPrefix) + file.path().filename().native();
    if (keeper_.get(name)) continue;
    log::info({}, "{}: its connection is gone, removed", file.path().native());
    std::filesystem::remove(file.path(), ec);
  }
}

}  // namespace kuasar::daemon
