#include "keeper/keeper_spawner.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "os/pidfd.h"
#include "os/pidfd_wait.h"
#include "os/process_end.h"

namespace kuasar::keeper {
namespace {

constexpr auto kRound = std::chrono::seconds(1);

os::ExitStatus unknown_end() {
  return os::ExitStatus{255, std::chrono::system_clock::now(), false};
}

bool is_zombie(pid_t pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat").value_or("");
  const std::size_t at = stat.rfind(')');
  return at != std::string::npos && stat.compare(at, 3, ") Z") == 0;
}

}  // namespace

Task<Result<os::Process>> KeeperSpawner::spawn(std::string key, os::ProcessSpec spec) {
  co_return client_.spawn(key, spec);
}

Task<Result<os::Process>> KeeperSpawner::find(std::string key) {
  co_return client_.find(key);
}

Task<Result<os::Process>> KeeperSpawner::adopt(std::string key, pid_t pid) {
  co_return client_.adopt(key, pid);
}

Task<os::ExitStatus> KeeperSpawner::wait(const os::Process& process) {
  const std::string key = process.key;
  const bool ended = co_await os::pidfd_wait(process.pidfd.get());
  if (!ended) co_return unknown_end();
  Result<os::ExitStatus> status = client_.status(key);
  if (status) co_return *status;
  // No keeper is to be had; the kernel may still tell us.
  const os::ProcessEnd end = os::read_process_end(process.pidfd.get(), process.pid);
  if (end.known) co_return os::ExitStatus{end.code, std::chrono::system_clock::now(), true};
  log::error({}, "how {} ended is not known: {}", key, status.error().message);
  co_return unknown_end();
}

void KeeperSpawner::acknowledge(const os::Process& process) {
  client_.acknowledge(process.key, process.pid);
}

Task<> KeeperSpawner::reap_strays() {
  for (;;) {
    reap_round();
    co_await sleep_for(kRound);
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
  }
}

void KeeperSpawner::reap_round() {
  std::set<pid_t> named;
  std::set<pid_t> leave_orphans;
  for (const auto& [key, child] : client_.children()) {
    named.insert(child.pid);
    if ((child.info.flags & wire::kLeavesOrphans) != 0) leave_orphans.insert(child.pid);
  }
  const std::string keeper = std::to_string(client_.keeper_pid());
  std::istringstream children(
      read_file("/proc/" + keeper + "/task/" + keeper + "/children").value_or(""));
  std::map<pid_t, Stray> seen;
  for (pid_t pid = 0; children >> pid;) {
    if (named.contains(pid) || !is_zombie(pid)) continue;
    const auto known = strays_.find(pid);
    Stray stray = known == strays_.end() ? Stray{leave_orphans, false} : std::move(known->second);
    const bool was_ripe = std::exchange(
        stray.ripe, std::none_of(stray.before.begin(), stray.before.end(),
                                 [&](pid_t before) { return leave_orphans.contains(before); }));
    if (known == strays_.end() || !was_ripe) {
      seen[pid] = std::move(stray);
      continue;
    }
    const Result<> reaped = client_.reap(pid);
    // The keeper may have reaped it by itself meanwhile.
    if (!reaped && reaped.error().code != Code::kNotFound)
      log::warning({}, "reap the stray {}: {}", pid, reaped.error().message);
  }
  strays_ = std::move(seen);
}

Task<> KeeperSpawner::forget_unclaimed() {
  std::vector<os::Process> waited;
  std::vector<std::string> unclaimed;
  for (const auto& [key, child] : client_.children()) {
    if (child.unclaimed) unclaimed.push_back(key);
  }
  for (const std::string& key : unclaimed) {
    const bool leaves_orphans = (client_.children().at(key).info.flags & wire::kLeavesOrphans) != 0;
    Result<os::Process> process = client_.find(key);
    if (!process) continue;
    const bool ended = os::pidfd_exited(process->pidfd.get());
    log::info({}, "nobody asks for {} (pid {}) of the daemon before: {}", key, process->pid,
              ended            ? "it has ended and is forgotten"
              : leaves_orphans ? "it is forgotten when it ends"
                               : "it goes on");
    if (ended) {
      client_.acknowledge(key, process->pid);
    } else if (leaves_orphans) {
      waited.push_back(std::move(*process));
    }
  }
  for (const os::Process& process : waited) {
    const bool ended = co_await os::pidfd_wait(process.pidfd.get());
    if (!ended) co_return;
    client_.acknowledge(process.key, process.pid);
  }
}

}  // namespace kuasar::keeper
