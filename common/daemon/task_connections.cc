#include "daemon/task_connections.h"

#include <poll.h>

#include <system_error>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "ttrpc/file_journal.h"

namespace kuasar::daemon {
namespace {

constexpr const char* kKind = "task";
constexpr std::string_view kPrefix = "task/";

// The peer has closed its end: whatever it asked for, nobody waits for the answer.
bool hung_up(int fd) {
  pollfd entry{fd, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace

TaskConnections::TaskConnections(keeper::KeeperClient& keeper, ttrpc::Server& server,
                                 std::filesystem::path journals)
    : keeper_(keeper), server_(server), journals_(std::move(journals)) {}

Result<> TaskConnections::begin(int listener) {
  CHECK_OK(make_dir(journals_));
  keeper_.on_accept([this](std::string name, UniqueFd fd) { serve(name, std::move(fd), false); });
  for (const std::string& name : keeper_.held(kPrefix)) {
    TRY(UniqueFd fd, keeper_.get(name));
    serve(name, std::move(fd), true);
  }
  remove_orphaned_journals();
  return keeper_.accept(kKind, listener);
}

void TaskConnections::end() {
  keeper_.on_accept({});
}

std::filesystem::path TaskConnections::journal_of(const std::string& name) const {
  return journals_ / name.substr(kPrefix.size());
}

void TaskConnections::serve(const std::string& name, UniqueFd connection, bool inherited) {
  auto journal = ttrpc::FileJournal::open(journal_of(name), [this, name] { keeper_.drop(name); });
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
  } else if (!inherited || !hung_up(connection.get())) {
    server_.adopt(std::move(connection), std::move(*journal));
    return;
  }
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
