#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "aot_cache.h"
#include "launch.h"
#include "module_zygotes.h"
#include "os/fd_holder.h"
#include "run_mode.h"
#include "task/host_driver.h"
#include "zygote.h"

namespace kuasar::wasm {

/// Containers that are WebAssembly modules: processes that a zygote has become, confined like any
/// container, with an engine that runs the module. No program is executed for them. The socket over
/// which a container is started is in the holder until then, so that a daemon that comes later can.
/// Owned by the daemon, lives on the io thread; mounts and cgroups are made on the pool.
class WasmDriver : public task::HostDriver {
 public:
  struct Limits {
    AotCache::Limits cache;
    ModuleZygotes::Limits zygotes;
  };

  /// `standard`: of containers that name none, one of the engines. `worker`: kuasar-wasm-worker.
  WasmDriver(os::Spawner& spawner, BlockingPool& pool, os::FdHolder& holder,
             std::vector<EngineConfig> engines, const std::string& worker, RunMode standard,
             Limits limits = {});
  /// From then on native code is kept there, of engines that were configured so; before the first
  /// container.
  Result<> open_cache(const std::string& path) { return cache_.open(path); }
  /// What the cache and the zygotes of modules have to do, until it is cancelled. Without these
  /// nothing is compiled, and there are no such zygotes.
  Task<> run_cache() { return cache_.run(engines()); }
  Task<> run_zygotes() { return modules_.run(engines()); }
  /// Zygotes of modules that there are.
  std::size_t module_zygotes() const { return modules_.size(); }

  /// A RunMode. kInvalidArgument for an engine that is not known.
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
    RunMode mode;
    /// The name of its image; empty: not known.
    std::string image;
    std::string sandbox_id;
  };
  using WasmEntryPtr = std::shared_ptr<WasmEntry>;

  WasmEntryPtr find_wasm(const std::string& container) const;

  /// A process that is to be made of a module.
  struct Start {
    task::ProcessRef ref;
    MemberPtr member;
    RunMode mode;
    std::string image;
    std::string pod;
    std::optional<int> oom_score_adj;
    /// Everything that it needs, made or opened; anew for every attempt.
    std::function<Task<Result<Launch>>()> gather;
  };

  std::vector<EngineZygote*> engines() const;
  /// kInvalidArgument, with the name of the field, for an engine that is not known.
  Result<RunMode> mode_named(const std::string& name, std::string_view where) const;
  Task<Result<pid_t>> make_child(task::ProcessRef ref, Zygote& zygote, Launch& launch,
                                 UniqueFd& control);
  /// Makes the process and waits until it has loaded its module. After a failure of an exec it is
  /// gone; that of an init is remove()'s.
  Task<Result<>> launch(const Start& start, const task::Stdio& stdio);
  /// The zygote that has the module `name` stands for; null: the engine's has to.
  ModuleZygotePtr find_module(EngineZygote& engine, const std::string& name, const Plan& plan,
                              const task::Stdio& stdio);
  /// As launch_by(); nothing is left of a failure.
  Task<Result<Readiness>> launch_by_module(const Start& start, Zygote& zygote, Launch launch,
                                           const task::Stdio& stdio);
  /// What the process says of its module.
  Task<Result<Readiness>> launch_by(const Start& start, Zygote& zygote, Launch launch,
                                    const task::Stdio& stdio);
  /// A refusal of its module that nobody has read, as kFailedPrecondition.
  Result<> heed_refusal(const task::ProcessRef& ref);
  /// Lets it run; one that runs already: success. kFailedPrecondition when its socket is lost.
  Result<> let_go(const task::ProcessRef& ref);
  Task<> end_process(const task::ProcessRef& ref, MemberPtr member);

  /// A module that is not in the cache: its process has it open until it is started.
  void want_code(EngineZygote& engine, const Start& start, const std::string& digest);

  os::FdHolder& holder_;
  AotCache cache_;
  std::map<std::string, std::unique_ptr<EngineZygote>> zygotes_;
  ModuleZygotes modules_;
  RunMode standard_;
};

}  // namespace kuasar::wasm
