#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <string>
#include <thread>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "support/process_figures.h"
#include "support/wait.h"

// Pods that come and go: what is used up must come back, and removal may come at any moment.

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;

struct Figures {
  long memory = 0;
  int descriptors = 0;

  static Figures of(pid_t pid) {
    return {static_cast<long>(test::memory(pid).private_dirty / 1024), open_descriptors(pid)};
  }
};

void run_and_remove(Case& e, int pods) {
  for_many(pods, 2, [&e](int) -> Result<> {
    TRY(const Pod pod, e.try_run_pod(e.host_network_config()));
    TRY(const Container container, e.try_create(pod, e.container_config({"true"})));
    CHECK_OK(e.cri().start_container(container.id));
    CHECK_OK(e.cri().stop_pod(pod.id));
    return e.cri().remove_pod(pod.id);
  });
}

}  // namespace

TEST_CASE("200 pods come and go: memory and descriptors stay", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("figures of its daemons");
    // Pools, caches and the allocator have their sizes then.
    run_and_remove(e, 50);
    const Figures daemon = Figures::of(e.lab().sandboxer_pid());
    const Figures keeper = Figures::of(e.lab().keeper_pid());
    const auto begun = std::chrono::steady_clock::now();
    run_and_remove(e, 200);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    const Figures daemon_after = Figures::of(e.lab().sandboxer_pid());
    const Figures keeper_after = Figures::of(e.lab().keeper_pid());
    fmt::print(
        "200 pods in {:.1f} s: daemon {} -> {} KiB, {} -> {} descriptors; keeper {} -> {} "
        "KiB, {} -> {} descriptors\n",
        took.count(), daemon.memory, daemon_after.memory, daemon.descriptors,
        daemon_after.descriptors, keeper.memory, keeper_after.memory, keeper.descriptors,
        keeper_after.descriptors);
    // gRPC's threads come and go with the load, each with an event descriptor.
    CHECK(daemon_after.descriptors <= daemon.descriptors + 4);
    CHECK(keeper_after.descriptors <= keeper.descriptors + 1);
    CHECK(keeper_after.memory <= keeper.memory + 32);
    // ASan keeps what is freed in quarantine; its build is the one with failpoints.
    if (!e.lab().has_failpoints()) CHECK(daemon_after.memory <= daemon.memory + 512);
  });
}

TEST_CASE("removal at any moment of a start: the pod goes whole", "[e2e][table]") {
  run_case([](Case& e) {
    for (int round = 0; round < 24; ++round) {
      CAPTURE(round);
      const Pod pod = e.run_pod(round % 2 == 0 ? e.host_network_config() : e.pod_config());
      cri::ContainerConfig config = e.container_config({"sleep", "3600"});
      namespace_options(config)->set_pid(round % 3 == 0 ? cri::POD : cri::CONTAINER);
      const Container container = e.create(pod, config);
      Result<> started;
      std::thread starter([&] { started = e.cri().start_container(container.id); });
      // The moment is another one each time: no state to wait for.
      std::this_thread::sleep_for(round * 4ms);
      const Result<> stopped = e.cri().stop_pod(pod.id);
      const Result<> removed = e.cri().remove_pod(pod.id);
      starter.join();
      INFO("started: " << (started ? "" : started.error().message));
      INFO("stopped: " << (stopped ? "" : stopped.error().message));
      INFO("removed: " << (removed ? "" : removed.error().message));
      // containerd itself refuses to remove a container that is just starting; the kubelet asks
      // again, until it is gone.
      std::string words;
      CHECK(wait_until(
          [&] {
            const Result<> stopped_again = e.cri().stop_pod(pod.id);
            const Result<> removed_again = e.cri().remove_pod(pod.id);
            words = stopped_again ? "" : stopped_again.error().message;
            if (!removed_again) words += removed_again.error().message;
            return stopped_again && removed_again;
          },
          10s));
      INFO("again: " << words);
      const auto pods = e.cri().list_pods();
      REQUIRE(pods.has_value());
      CHECK(pods->empty());
    }
  });
}

}  // namespace kuasar::test
