#include "sandbox/orphan_collector.h"

#include "base/log.h"

namespace kuasar::sandbox {

OrphanCollector::OrphanCollector(Suspects& suspects, SandboxStore& store,
                                 std::chrono::nanoseconds grace)
    : suspects_(suspects), store_(store), grace_(grace) {}

Task<> OrphanCollector::run() {
  while (!stopping_.is_set()) {
    co_await look();
    co_await stopping_.wait_for(grace_ / 3);
  }
}

void OrphanCollector::stop() {
  stopping_.set();
  store_.cancel();
}

Task<> OrphanCollector::look() {
  const std::vector<std::string> suspected = suspects_.suspects(grace_);
  if (suspected.empty()) {
    absent_.clear();
    co_return;
  }
  const Result<std::set<std::string>> known = co_await store_.list();
  if (stopping_.is_set()) co_return;
  if (!known) {
    log::debug({}, "{}", known.error().message);
    co_return;
  }
  suspects_.vouch(*known);
  for (const std::string& id : judge(suspected, *known)) {
    log::warning({id, {}}, "containerd does not know this sandbox (any more): shutting it down");
    if (Result<> removed = co_await suspects_.shutdown(id); removed) {
      ++removed_;
    } else {
      log::error({id, {}}, "{}", removed.error().message);
    }
  }
}

// Those that were absent before, a grace ago; notes the others that are absent now.
std::vector<std::string> OrphanCollector::judge(const std::vector<std::string>& suspected,
                                                const std::set<std::string>& known) {
  const auto now = std::chrono::steady_clock::now();
  std::map<std::string, std::chrono::steady_clock::time_point> absent;
  std::vector<std::string> lost;
  for (const std::string& id : suspected) {
    if (known.contains(id)) continue;
    const auto before = absent_.find(id);
    const auto since = before == absent_.end() ? now : before->second;
    absent[id] = since;
    if (before != absent_.end() && now - since >= grace_) lost.push_back(id);
  }
  absent_ = std::move(absent);
  return lost;
}

}  // namespace kuasar::sandbox
