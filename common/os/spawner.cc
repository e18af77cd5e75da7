#include "os/spawner.h"

#include <utility>

#include "os/pidfd.h"

namespace kuasar::os {

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

}  // namespace kuasar::os
