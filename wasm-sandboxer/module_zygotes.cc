#include "module_zygotes.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "launch.h"

namespace kuasar::wasm {
namespace {

using namespace std::chrono_literals;

// Code of the cache is loaded, not compiled.
constexpr auto kLoadTimeout = 30s;
// Images that are remembered; a daemon that has seen more begins anew.
constexpr std::size_t kMaxNames = 4096;
constexpr std::size_t kShownDigest = 12;
// For idle ones, while there are any.
constexpr auto kLook = 5s;

Launch plan_zygote(const EngineZygote& engine, const ModuleKey& module) {
  Launch launch;
  launch.request.new_mounts = 1;
  launch.request.new_network = 1;
  Plan& plan = launch.plan;
  plan.module = "kuasar-wasm-mod";
  plan.args = {"kuasar-wasm-worker", engine.config().name, module.digest.substr(0, kShownDigest)};
  plan.zygote_of = module.digest;
  plan.uid = module.uid;
  plan.gid = module.gid;
  plan.memory_pages = module.memory_pages;
  return launch;
}

}  // namespace

ModuleZygote::ModuleZygote(os::Spawner& spawner, const AotCache& cache, EngineZygote& engine,
                           ModuleKey module, std::size_t slot)
    : Zygote(spawner, key_of(engine, slot)),
      cache_(cache),
      engine_(engine),
      module_(std::move(module)),
      slot_(slot) {}

std::string ModuleZygote::key_of(const EngineZygote& engine, std::size_t slot) {
  return fmt::format("zygote/{}/{}", engine.config().name, slot);
}

Task<Result<Zygote::Started>> ModuleZygote::start() {
  Launch launch = plan_zygote(engine_, module_);
  CO_TRY(UniqueFd dir, cache_.directory());
  launch.plan.cache = launch.add(std::move(dir));
  CO_TRY(Helper made,
         co_await launch_helper(spawner_, engine_, std::move(launch), key_, kLoadTimeout, key_));
  log::info({}, "{} (pid {}) has module {} of user {}", key_, made.process.pid,
            std::string_view(module_.digest).substr(0, kShownDigest), module_.uid);
  co_return Started{std::move(made.process), std::move(made.control)};
}

void ModuleZygotes::learn(const EngineZygote& engine, const std::string& name,
                          const std::string& digest) {
  if (name.empty() || !is_digest(digest)) return;
  if (digests_.size() >= kMaxNames) digests_.clear();
  digests_[{engine.config().name, name}] = digest;
}

void ModuleZygotes::forget(const EngineZygote& engine, const std::string& name) {
  digests_.erase({engine.config().name, name});
}

void ModuleZygotes::give_up(const ModuleZygote& zygote) {
  if (unfit_.size() >= kMaxNames) unfit_.clear();
  unfit_.insert({zygote.engine().config().name, zygote.module()});
  // It is idle from now on.
  for (Entry& entry : entries_) {
    if (entry.zygote.get() == &zygote) entry.used = Clock::time_point();
  }
}

std::optional<std::size_t> ModuleZygotes::free_slot() const {
  for (std::size_t slot = 0; slot < limits_.most; ++slot) {
    const auto has_it = [&](const Entry& entry) { return entry.zygote->slot() == slot; };
    if (std::none_of(entries_.begin(), entries_.end(), has_it)) return slot;
  }
  return std::nullopt;
}

ModuleZygotePtr ModuleZygotes::find(EngineZygote& engine, const std::string& name,
                                    ModuleKey common) {
  const auto known = digests_.find({engine.config().name, name});
  if (!ready_ || known == digests_.end()) return nullptr;
  ModuleKey module = std::move(common);
  module.digest = known->second;
  if (unfit_.contains({engine.config().name, module})) return nullptr;
  for (Entry& entry : entries_) {
    if (entry.ending || &entry.zygote->engine() != &engine || entry.zygote->module() != module) {
      continue;
    }
    entry.used = Clock::now();
    return entry.zygote;
  }
  // With all of them in use the others are made by the engine's, until one has been idle.
  const std::optional<std::size_t> slot = free_slot();
  if (!slot) return nullptr;
  auto zygote = std::make_shared<ModuleZygote>(spawner_, cache_, engine, std::move(module), *slot);
  entries_.push_back({zygote, Clock::now()});
  more_->set();
  return zygote;
}

Task<> ModuleZygotes::end_idle() {
  const auto since = Clock::now() - limits_.idle;
  std::vector<ModuleZygotePtr> idle;
  for (Entry& entry : entries_) {
    // One that somebody has hold of is about to be used.
    if (entry.used > since || entry.zygote.use_count() > 1) continue;
    entry.ending = true;
    idle.push_back(entry.zygote);
  }
  for (const ModuleZygotePtr& zygote : idle) {
    // Its slot is free when it is gone.
    co_await zygote->close();
    std::erase_if(entries_, [&](const Entry& entry) { return entry.zygote == zygote; });
  }
}

Task<> ModuleZygotes::run(std::vector<EngineZygote*> engines) {
  for (const EngineZygote* engine : engines) {
    for (std::size_t slot = 0; slot < limits_.most; ++slot) {
      co_await os::end_named(spawner_, ModuleZygote::key_of(*engine, slot));
    }
  }
  ready_ = true;
  // A wait that begins after the cancellation would not end by it.
  bool cancelled = co_await is_cancelled();
  while (!cancelled) {
    if (entries_.empty()) {
      more_ = std::make_shared<Event>();
      const auto more = more_;
      co_await more->wait();
    } else {
      co_await sleep_for(std::min<std::chrono::nanoseconds>(limits_.idle, kLook));
      co_await end_idle();
    }
    cancelled = co_await is_cancelled();
  }
}

}  // namespace kuasar::wasm
