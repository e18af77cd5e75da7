#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "aot_cache.h"
#include "launch.h"
#include "os/fd_holder.h"
#include "task/host_driver.h"
#include "zygote.h"

namespace kuasar::wasm {

/// Containers that are WebAssembly modules: processes that a zygote has become, confined like any
/// container, with an engine that runs the module. No program is executed for them. The socket over
/// which a container is started is in the holder until then, so that a daemon that comes later can.
/// Owned by the daemon, lives on the io thread; mounts and cgroups are made on the pool.
class WasmDriver : public task::HostDriver {
 public:
  /// The first engine is the one of containers that name none. `worker`: kuasar-wasm-worker.
  WasmDriver(os::Spawner& spawner, BlockingPool& pool, os::FdHolder& holder,
             std::vector<EngineConfig> engines, const std::string& worker,
             AotCache::Limits limits = {});
  /// From then on native code is kept there, of engines that were configured so; before the first
  /// container.
  Result<> open_cache(const std::string& path) { return cache_.open(path); }
  /// What the cache has to do, until it is cancelled.
  Task<> run_cache();

  /// The name of an engine. kInvalidArgument for one that is not known.
  Result<std::string> runtime_for(const std::string& binary) override;
  Task<Result<>> create(task::ContainerPlan plan, const task::Stdio& stdio) override;
  Task<Result<>> start(std::string container) override;
  Task<Result<>> exec(task::ExecPlan plan, const task::Stdio& stdio) override;
  void forget_exec(const task::ProcessRef& ref) override;
  /// kUnimplemented.
  Task<Result<>> checkpoint(task::CheckpointPlan plan) override;
  Task<Result<>> remove(std::string container) override;
  Task<Result<bool>> recover(std::string dir,
                             std::shared_ptr<const state::v1::ContainerState> record) override;
  Task<Result<>> resume_exec(task::ExecPlan plan) override;
  void save(const std::string& container, state::v1::ContainerState& record) override;

 private:
  struct WasmEntry : Entry {
    std::string engine;
  };
  using WasmEntryPtr = std::shared_ptr<WasmEntry>;

  WasmEntryPtr find_wasm(const std::string& container) const;
  /// kInvalidArgument, with the name of the field, for an engine that is not known.
  Result<std::string> engine_named(const std::string& name, std::string_view where) const;
  Task<Result<pid_t>> make_child(task::ProcessRef ref, Zygote& zygote, Launch& launch,
                                 UniqueFd& control);
  /// Makes the process and waits until it has loaded its module. After a failure of an exec it is
  /// gone; that of an init is remove()'s.
  Task<Result<>> launch(task::ProcessRef ref, MemberPtr member, std::string engine, Launch launch,
                        const task::Stdio& stdio, std::optional<int> oom_score_adj);
  /// A refusal of its module that nobody has read, as kFailedPrecondition.
  Result<> heed_refusal(const task::ProcessRef& ref);
  /// Lets it run; one that runs already: success. kFailedPrecondition when its socket is lost.
  Result<> let_go(const task::ProcessRef& ref);
  Task<> end_process(const task::ProcessRef& ref, MemberPtr member);

  /// A module that is not in the cache: its process has it open until it is started.
  void want_code(Zygote& zygote, const os::Process& process, const std::string& digest);

  os::FdHolder& holder_;
  AotCache cache_;
  std::map<std::string, std::unique_ptr<Zygote>> zygotes_;
  std::string default_engine_;
};

}  // namespace kuasar::wasm
