#pragma once

#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "aot_cache.h"
#include "async/event.h"
#include "async/task.h"
#include "os/spawner.h"
#include "zygote.h"

namespace kuasar::wasm {

/// What children of one module zygote have in common.
struct ModuleKey {
  std::string digest;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  /// Plan::memory_pages.
  std::uint32_t memory_pages = 0;
  auto operator<=>(const ModuleKey&) const = default;
};

/// A zygote that has one module's native code loaded, as the user whose containers it becomes. It
/// is a child of an engine's zygote with fewer rights (worker/child.cc).
class ModuleZygote : public Zygote {
 public:
  ModuleZygote(os::Spawner& spawner, const AotCache& cache, EngineZygote& engine, ModuleKey module,
               std::size_t slot);

  EngineZygote& engine() const { return engine_; }
  const ModuleKey& module() const { return module_; }
  std::size_t slot() const { return slot_; }
  static std::string key_of(const EngineZygote& engine, std::size_t slot);

 private:
  Task<Result<Started>> start() override;

  const AotCache& cache_;
  EngineZygote& engine_;
  ModuleKey module_;
  std::size_t slot_;
};
using ModuleZygotePtr = std::shared_ptr<ModuleZygote>;

/// The zygotes of modules that have been seen before: a few at a time, each gone when nobody has
/// wanted it for a while. Which module an image has is what its last container said: a guess, which
/// every child checks. Lives on the io thread.
class ModuleZygotes {
 public:
  struct Limits {
    std::size_t most = 16;
    std::chrono::seconds idle{60};
  };

  ModuleZygotes(os::Spawner& spawner, const AotCache& cache, Limits limits)
      : spawner_(spawner), cache_(cache), limits_(limits) {}

  /// A module of an image ran as native code of the cache. `name`: of the image and the path in it.
  void learn(const EngineZygote& engine, const std::string& name, const std::string& digest);
  /// A guess was wrong.
  void forget(const EngineZygote& engine, const std::string& name);
  /// It could not make a container that the engine's zygote could, or could not be made itself: its
  /// key gets none any more.
  void give_up(const ModuleZygote& zygote);
  /// For a container of the module that this name had last; it may not have been started yet. Null:
  /// there is none. `common` has no digest.
  ModuleZygotePtr find(EngineZygote& engine, const std::string& name, ModuleKey common);
  /// Those that there are.
  std::size_t size() const { return entries_.size(); }
  /// Ends what an earlier daemon left with these engines, then what has been idle, until it is
  /// cancelled. Once per object; there are no zygotes before.
  Task<> run(std::vector<EngineZygote*> engines);

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    ModuleZygotePtr zygote;
    Clock::time_point used;
    bool ending = false;
  };
  /// Engine and name, or engine and key.
  using Name = std::pair<std::string, std::string>;
  using Unfit = std::pair<std::string, ModuleKey>;

  std::optional<std::size_t> free_slot() const;
  Task<> end_idle();

  os::Spawner& spawner_;
  const AotCache& cache_;
  Limits limits_;
  std::vector<Entry> entries_;
  std::map<Name, std::string> digests_;
  std::set<Unfit> unfit_;
  bool ready_ = false;
  std::shared_ptr<Event> more_ = std::make_shared<Event>();
};

}  // namespace kuasar::wasm
