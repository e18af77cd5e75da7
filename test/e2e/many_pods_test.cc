#include "e2e/many_pods.h"

#include <fmt/format.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "e2e/table.h"
#include "support/wait.h"

namespace kuasar::test {

void for_many(int count, int threads, const std::function<Result<>(int)>& work) {
  std::atomic<int> next{0};
  std::mutex mutex;
  std::vector<std::string> failures;
  std::vector<std::jthread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&] {
      for (int i = next++; i < count; i = next++) {
        const auto done = work(i);
        if (done) continue;
        const std::lock_guard lock(mutex);
        failures.push_back(fmt::format("{}: {}", i, done.error().message));
      }
    });
  }
  for (std::jthread& worker : workers) worker.join();
  INFO(failures.size() << " failed, the first: " << (failures.empty() ? "" : failures.front()));
  REQUIRE(failures.empty());
}

std::vector<RunningPod> run_many(Case& e, int count,
                                 const std::function<cri::PodSandboxConfig()>& pod_config,
                                 const std::function<std::string(int)>& script) {
  std::vector<RunningPod> all(static_cast<std::size_t>(count));
  std::vector<cri::ContainerConfig> containers;
  for (int i = 0; i < count; ++i) {
    all[static_cast<std::size_t>(i)].pod.config = pod_config();
    containers.push_back(e.container_config({"sh", "-c", script(i)}));
  }
  for_many(count, count, [&](int i) -> Result<> {
    RunningPod& item = all[static_cast<std::size_t>(i)];
    TRY(item.pod, e.try_run_pod(item.pod.config));
    TRY(item.container, e.try_create(item.pod, containers[static_cast<std::size_t>(i)]));
    return e.cri().start_container(item.container.id);
  });
  return all;
}

void remove_many(Case& e, const std::vector<RunningPod>& all) {
  for_many(static_cast<int>(all.size()), 16, [&](int i) -> Result<> {
    const std::string& id = all[static_cast<std::size_t>(i)].pod.id;
    CHECK_OK(e.cri().stop_pod(id));
    return e.cri().remove_pod(id);
  });
}

TEST_CASE("50 pods at once: each prints its own id and ends with its own code", "[e2e][table]") {
  run_case([](Case& e) {
    constexpr int kPods = 50;
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    const std::vector<RunningPod> all = run_many(
        e, kPods, [&] { return e.pod_config(); },
        [](int i) { return fmt::format("echo id $(hostname) {}; exit {}", i, i); });
    const double up = elapsed();
    for (int i = 0; i < kPods; ++i) {
      const RunningPod& item = all[static_cast<std::size_t>(i)];
      const Finished end = e.finish(item.container);
      CHECK(end.status.exit_code() == i);
      CHECK(end.log.out == fmt::format("id {} {}\n", item.pod.config.hostname(), i));
    }
    const double ended = elapsed();
    remove_many(e, all);
    fmt::print("50 pods of {}: started after {:.1f} s, all ended {:.1f} s, removed {:.1f} s\n",
               e.lab().sandboxer().name, up, ended, elapsed());
  });
}

}  // namespace kuasar::test
