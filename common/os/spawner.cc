#include "os/spawner.h"

#include <poll.h>
#include <signal.h>

#include <utility>

#include "base/log.h"
#include "os/pidfd.h"
#include "os/pidfd_wait.h"

namespace kuasar::os {
namespace {

constexpr std::chrono::seconds kKillTimeout(5);

}  // namespace

Task<std::optional<Process>> readopt(Spawner& spawner, std::string key, pid_t pid,
                                     unsigned long long start_time) {
  Result<Process> known = co_await spawner.find(key);
  if (known && known->pid == pid) co_return std::move(*known);
  // Nothing is named that is not the process of the record, whose pid may be another's by now.
  const Result<unsigned long long> before = process_start_time(pid);
  if (!before || *before != start_time) co_return std::nullopt;
  // The pidfd first, then the start time: the pair is then about one and the same process.
  Result<Process> process = co_await spawner.adopt(std::move(key), pid);
  if (!process) co_return std::nullopt;
  const Result<unsigned long long> now = process_start_time(pid);
  if (!now || *now != start_time) co_return std::nullopt;
  co_return std::move(*process);
}

Task<> end_named(Spawner& spawner, std::string key) {
  Result<Process> known = co_await spawner.find(key);
  if (!known) co_return;
  (void)pidfd_signal(known->pidfd.get(), SIGKILL);
  const bool cancelled = co_await is_cancelled();
  bool ended = false;
  if (cancelled) {
    pollfd entry{known->pidfd.get(), POLLIN, 0};
    ended = ::poll(&entry, 1, std::chrono::milliseconds(kKillTimeout).count()) == 1;
  } else {
    ended = co_await pidfd_wait_for(known->pidfd.get(), kKillTimeout);
  }
  if (!ended) log::error({}, "{} (pid {}) does not end on SIGKILL", key, known->pid);
  spawner.acknowledge(*known);
}

}  // namespace kuasar::os
