#include <fmt/format.h>
#include <signal.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "e2e/watch.h"
#include "support/wait.h"

// Restarts of the daemon and of containerd while pods run.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kPatience(30);
// What containerd gave up is dead and gone so soon after the restart.
constexpr std::chrono::seconds kCleaned(5);

void check_lost(Case& e, const Container& container) {
  const cri::ContainerStatus status = e.finish(container).status;
  CHECK(status.exit_code() == 255);
}

bool bundle_gone(Case& e, const Container& container) {
  return wait_until([&] { return !fs::exists(e.lab().bundle(container.id)); }, kPatience);
}

}  // namespace

TEST_CASE("T9 T16: SIGTERM and restart of the daemon keep 50 pods READY, their containers RUNNING",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("pods that outlive their daemon");
    constexpr int kPods = 50;
    const std::vector<RunningPod> all = run_many(
        e, kPods, [&] { return e.host_network_config(); },
        [](int i) { return fmt::format("echo up; exec sleep 36{:02}", i); });
    for (const RunningPod& item : all) e.await_output(item.container, "up\n");

    Watch watch(e.lab().containerd_socket(), kPods, kPods);
    REQUIRE(watch.ask_more(3));
    CHECK(e.lab().stop_sandboxer() == 0);
    REQUIRE(watch.ask_more(20));
    e.lab().start_sandboxer();
    REQUIRE(watch.ask_more(20));
    watch.stop();
    INFO("asked " << watch.asked() << " times");
    CHECK(watch.complaint() == "");

    for (const RunningPod& item : all) {
      CHECK(e.state(item.pod) == cri::SANDBOX_READY);
      CHECK(e.status(item.container).state() == cri::CONTAINER_RUNNING);
    }
    CHECK(e.output_of(all.front().pod, "echo again") == "again");
    remove_many(e, all);
  });
}

TEST_CASE("T21: kill -9 of daemon and keeper at once: containers are lost and cleaned, pods go on",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("pods that outlive their daemon");
    const Pod plain = e.run_pod();
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_pid(cri::POD);
    const Pod sharing = e.run_pod(config);
    const Container one = e.shell(plain, "echo up; sleep 3605 & exec sleep 3605");
    e.await_output(one, "up\n");
    cri::ContainerConfig container =
        e.container_config({"sh", "-c", "echo up; sleep 3606 & exec sleep 3606"});
    namespace_options(container)->set_pid(cri::POD);
    const Container two = e.start(sharing, container);
    e.await_output(two, "up\n");
    const Container created = e.create(plain, e.container_config({"true"}));

    e.lab().kill_both();
    check_lost(e, one);
    check_lost(e, two);
    CHECK(bundle_gone(e, one));
    CHECK(bundle_gone(e, two));
    e.lab().start_sandboxer();

    // Nobody asks for them any more: the daemon itself kills and removes what it finds.
    CHECK(wait_until([] { return processes_with("sleep 3605").empty(); }, kCleaned));
    CHECK(wait_until([] { return processes_with("sleep 3606").empty(); }, kCleaned));
    for (const auto& [pod, lost] : {std::pair(plain, one), std::pair(sharing, two)}) {
      const fs::path state = e.lab().dir() / "sandboxes" / pod.id / "containers" / lost.id;
      CAPTURE(state);
      CHECK(wait_until([&] { return !fs::exists(state); }, kPatience));
    }

    CHECK(wait_until([&] { return e.cri().pod_status(plain.id).has_value(); }, kPatience));
    CHECK(e.state(plain) == cri::SANDBOX_READY);
    CHECK(e.state(sharing) == cri::SANDBOX_READY);
    CHECK(e.status(created).state() == cri::CONTAINER_CREATED);
    REQUIRE(e.cri().start_container(created.id).has_value());
    CHECK(e.finish(created).status.exit_code() == 0);
    CHECK(e.output_of(plain, "echo again") == "again");
    container = e.container_config({"sh", "-c", "[ $$ -ne 1 ] && echo shared"});
    namespace_options(container)->set_pid(cri::POD);
    CHECK(e.run(sharing, container).log.out == "shared\n");
  });
}

TEST_CASE("calls made while the daemon is dead wait for the next one", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("calls that outlive their daemon");
    const Pod kept = e.run_pod();
    const Pod removed = e.run_pod();
    const Container container = e.sleeper(removed);
    e.lab().kill_sandboxer();
    Result<> stopped;
    std::jthread stopper([&] { stopped = e.cri().stop_pod(removed.id); });
    e.lab().start_sandboxer();
    stopper.join();
    INFO("StopPodSandbox: " << (stopped ? "" : stopped.error().message));
    CHECK(stopped.has_value());
    e.remove(removed);
    CHECK(wait_until([&] { return e.cri().pod_status(kept.id).has_value(); }, kPatience));
    CHECK(e.output_of(kept, "echo alive") == "alive");
  });
}

TEST_CASE("T6 T7 T8: after a restart of containerd all is still RUNNING, and stops",
          "[e2e][table]") {
  for (const bool hard : {false, true}) {
    DYNAMIC_SECTION((hard ? "kill -9" : "SIGTERM")) {
      run_case([hard](Case& e) {
        const Pod pod = e.run_pod();
        const Container running = e.sleeper(pod);
        const Container polite =
            e.shell(pod, "trap 'exit 6' TERM; echo up; n=0; while :; do sleep 0.05; done");
        e.await_output(polite, "up\n");
        const Container created = e.create(pod, e.container_config({"echo", "late"}));
        const Container exited = e.shell(pod, "exit 3");
        e.finish(exited);

        if (hard) {
          e.lab().kill_containerd();
        } else {
          CHECK(e.lab().stop_containerd() == 0);
        }
        e.lab().start_containerd();
        CHECK(e.state(pod) == cri::SANDBOX_READY);
        CHECK(e.status(running).state() == cri::CONTAINER_RUNNING);
        CHECK(e.status(polite).state() == cri::CONTAINER_RUNNING);
        CHECK(e.status(exited).exit_code() == 3);

        REQUIRE(e.cri().stop_container(polite.id, 20).has_value());
        CHECK(e.finish(polite).status.exit_code() == 6);
        REQUIRE(e.cri().stop_container(running.id, 0).has_value());
        CHECK(e.finish(running).status.exit_code() == 137);
        REQUIRE(e.cri().start_container(created.id).has_value());
        CHECK(e.finish(created).log.out == "late\n");
        CHECK(e.output_of(pod, "echo new") == "new");
        e.stop(pod);
        CHECK(e.state(pod) == cri::SANDBOX_NOTREADY);
      });
    }
  }
}

TEST_CASE("T18: the OCI runtime's root is ours, also when containerd's shim cleans up",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a runtime root of its own");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    CHECK(fs::exists(e.lab().dir() / "oci" / container.id));
    CHECK_FALSE(fs::exists(fs::path("/run/containerd/runc/k8s.io") / container.id));
    e.lab().stop_containerd();
    e.lab().start_containerd();
    // From now on every Delete of containerd also runs `containerd-shim-runc-v2 delete`.
    const Container other = e.shell(pod, "exit 9");
    CHECK(e.finish(other).status.exit_code() == 9);
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
    CHECK(fs::exists(e.lab().dir() / "oci" / container.id));
    REQUIRE(e.cri().stop_container(container.id, 0).has_value());
    CHECK(e.finish(container).status.exit_code() == 137);
    CHECK(wait_until([&] { return !fs::exists(e.lab().dir() / "oci" / container.id); }, kPatience));
  });
}

TEST_CASE("T8: both restart, the daemon first: pods are READY, containers RUNNING",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("pods that outlive their daemon");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    e.lab().stop_containerd();
    CHECK(e.lab().stop_sandboxer() == 0);
    e.lab().start_sandboxer();
    e.lab().start_containerd();
    CHECK(e.state(pod) == cri::SANDBOX_READY);
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
    CHECK(e.output_of(pod, "echo again") == "again");
  });
}

}  // namespace kuasar::test
