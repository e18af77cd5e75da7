#pragma once

#include <chrono>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/task.h"
#include "sandbox/sandbox_store.h"

namespace kuasar::sandbox {

/// What the collector needs to know of the sandboxes, and may do to them. Implemented by
/// SandboxManager.
class Suspects {
 public:
  virtual ~Suspects() = default;
  /// Sandboxes that containerd may have forgotten: here before this daemon and not vouched for
  /// since; nobody has called Wait within `grace`; or without a container for twice that.
  virtual std::vector<std::string> suspects(std::chrono::nanoseconds grace) const = 0;
  /// containerd knows them: doubts begin anew.
  virtual void vouch(const std::set<std::string>& known) = 0;
  virtual Task<Result<>> shutdown(std::string id) = 0;
};

/// Removes sandboxes that containerd has forgotten (T20): RunPodSandbox can fail after our Start
/// had succeeded, or without our answer, and containerd 2.1 then calls nothing. Its sandbox store
/// is the list of what must exist: a suspect that is absent from it twice, a grace apart, is shut
/// down. While containerd does not answer nothing is changed.
class OrphanCollector {
 public:
  OrphanCollector(Suspects& suspects, SandboxStore& store, std::chrono::nanoseconds grace);

  /// Looks every third of the grace, until stop().
  Task<> run();
  void stop();
  /// Sandboxes shut down so far.
  std::uint64_t removed() const { return removed_; }
  /// One look.
  Task<> look();

 private:
  std::vector<std::string> judge(const std::vector<std::string>& suspected,
                                 const std::set<std::string>& known);

  Suspects& suspects_;
  SandboxStore& store_;
  std::uint64_t removed_ = 0;
  std::chrono::nanoseconds grace_;
  /// When each was first seen to be absent.
  std::map<std::string, std::chrono::steady_clock::time_point> absent_;
  Event stopping_;
};

}  // namespace kuasar::sandbox
