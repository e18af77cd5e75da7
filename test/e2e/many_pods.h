#pragma once

#include <functional>
#include <string>
#include <vector>

#include "e2e/table.h"

namespace kuasar::test {

/// Calls work(0) ... work(count - 1) on `threads` threads and fails the test when one fails.
/// `work` must not use Catch2's assertions: they belong to the test's own thread.
void for_many(int count, int threads, const std::function<Result<>(int)>& work);

struct RunningPod {
  Pod pod;
  Container container;
};

/// Starts pods with one container each, all at the same time.
std::vector<RunningPod> run_many(Case& e, int count,
                                 const std::function<cri::PodSandboxConfig()>& pod_config,
                                 const std::function<std::string(int)>& script);
void remove_many(Case& e, const std::vector<RunningPod>& all);

}  // namespace kuasar::test
