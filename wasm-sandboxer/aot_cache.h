#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "async/fair_gate.h"
#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "os/spawner.h"
#include "zygote.h"

namespace kuasar::wasm {

/// Native code of modules, in a directory that belongs to root: a file per module, engine and
/// processor (worker/artifact.h), which containers read. What is missing is compiled by a process
/// that is confined as a container is, with its memory and time limited, while the containers that
/// want it run without. Two of these run at a time, of different pods: pods take turns, and what
/// one has queued does not delay another. Nothing here parses a module. Owned by the driver's
/// owner, lives on the io thread; files are read and written on the pool.
class AotCache {
 public:
  struct Limits {
    /// Of all files together, in bytes; the oldest go.
    std::uint64_t total = 1ULL << 30;
    /// Larger modules are not compiled.
    std::uint64_t module = 64ULL << 20;
    std::uint64_t code = 256ULL << 20;
    /// Of the process that compiles: private memory in bytes, processor time in seconds.
    std::uint64_t memory = 2ULL << 30;
    std::uint64_t cpu_seconds = 120;
  };

  AotCache(os::Spawner& spawner, BlockingPool& pool, Limits limits);

  /// Makes the directory where it is missing, 0711. kFailedPrecondition when somebody else than
  /// root may write in it or it is no directory.
  Result<> open(const std::string& path);
  /// False: there is no cache.
  bool is_open() const { return static_cast<bool>(dir_); }
  /// The directory, for a child to look in.
  Result<UniqueFd> directory() const;
  /// A module, open for reading, is to be compiled some time for this pod; what is queued for it or
  /// has failed for it already is not, nor what is beyond its share of the queue. `digest` is what
  /// a child says of it, and is not believed.
  void want(EngineZygote& zygote, std::string digest, UniqueFd module, std::string pod);
  /// Modules that are queued or under way.
  std::size_t pending() const { return pending_; }
  /// Ends what compilers an earlier daemon left with these, then compiles what is wanted, until it
  /// is cancelled. Once per object.
  Task<> run(std::vector<EngineZygote*> zygotes);

 private:
  struct Job {
    EngineZygote* zygote;
    std::string digest;
    UniqueFd module;
    std::string pod;
    /// In the cache.
    std::string name;
  };

  /// From its turn to its end.
  Task<> serve(Job job);
  Task<> compile_in_slot(Job& job, std::size_t slot);
  Task<Result<>> compile(Job& job, std::string key);
  Task<Result<>> run_compiler(Job& job, std::string key, const UniqueFd& source,
                              const UniqueFd& code);
  bool has(const std::string& name) const;
  /// Writes the file and makes room for it. Blocking.
  Result<> keep(const std::string& name, const UniqueFd& code) const;

  os::Spawner& spawner_;
  BlockingPool& pool_;
  Limits limits_;
  UniqueFd dir_;
  std::string path_;
  /// Has the compilers of pods take turns.
  FairGate gate_;
  /// Compilers that there may be have a slot each, which gives its process a name.
  std::vector<bool> slots_;
  /// What run() has not seen yet.
  std::deque<Job> queue_;
  std::size_t pending_ = 0;
  /// Of pending_, by pod.
  std::map<std::string, std::size_t> pending_of_;
  /// Pod and name of what is wanted and not to be wanted again: queued, under way, or not to be
  /// compiled. A failure is its pod's: it may be of a file that is another one by now, or of
  /// memory.
  std::set<std::pair<std::string, std::string>> known_;
  std::shared_ptr<Event> more_;
};

}  // namespace kuasar::wasm
