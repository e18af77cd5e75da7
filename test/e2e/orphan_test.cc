#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <thread>

#include "e2e/table.h"
#include "support/controller_client.h"
#include "support/nri_plugin.h"
#include "support/wait.h"

// Pods that containerd has forgotten (T20). The tests' own grace is 2 s (e2e/table.cc).

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

// Made behind containerd's back: as after a RunPodSandbox that failed past our Start.
std::string start_unknown_pod(Case& e, ControllerClient& controller) {
  const std::string id = "forgotten-by-containerd";
  containerd::services::sandbox::v1::ControllerCreateRequest request;
  request.set_sandbox_id(id);
  request.mutable_options()->set_type_url("runtime.v1.PodSandboxConfig");
  request.mutable_options()->set_value(e.host_network_config().SerializeAsString());
  REQUIRE(controller.create(request).code == 0);
  REQUIRE(controller.start(id).code == 0);
  return id;
}

}  // namespace

TEST_CASE("T20: a pod that containerd forgot after Start is removed, others stay", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("pods that outlive their caller");
    const Pod idle = e.run_pod(e.host_network_config());
    ControllerClient controller(e.lab().listen());
    const std::string id = start_unknown_pod(e, controller);
    const fs::path state = e.lab().dir() / "sandboxes" / id;
    CHECK(fs::exists(state));
    CHECK(wait_until([&] { return !fs::exists(state); }, 30s));
    CHECK(controller.status(id).code == 5);
    // As long without a container, but known.
    CHECK(e.state(idle) == cri::SANDBOX_READY);
    CHECK(e.output_of(idle, "echo usable") == "usable");
  });
}

TEST_CASE("T20: while containerd is away no pod is taken for forgotten", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("pods that outlive their caller");
    ControllerClient controller(e.lab().listen());
    e.lab().stop_containerd();
    const std::string id = start_unknown_pod(e, controller);
    const fs::path state = e.lab().dir() / "sandboxes" / id;
    // Three times the grace: it must not go.
    CHECK_FALSE(wait_until([&] { return !fs::exists(state); }, 6s));
    CHECK(controller.status(id).response.state() == "SANDBOX_READY");
    e.lab().start_containerd();
    CHECK(wait_until([&] { return !fs::exists(state); }, 30s));
  });
}

// RunPodSandbox fails after our Start, and containerd 2.1 tells us nothing about it.
TEST_CASE("T20: a pod that an NRI hook refused is removed, and can be had again", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a refused pod that leaves nothing: it keeps the pod's cgroup");
    NriPlugin plugin(e.lab().root() / "run/nri.sock");
    const cri::PodSandboxConfig config = e.pod_config();
    // containerd takes the plugin in a moment after it has connected.
    REQUIRE(wait_until(
        [&] {
          e.remove(e.run_pod(e.host_network_config()));
          return plugin.heard() > 0;
        },
        10s));
    plugin.refuse(true);
    const auto refused = e.try_run_pod(config);
    REQUIRE_FALSE(refused.has_value());
    CHECK_THAT(refused.error().message, ContainsSubstring(NriPlugin::kWords));
    CHECK(e.cri().list_pods()->empty());
    plugin.refuse(false);
    const Pod again = e.run_pod(config);
    CHECK(e.output_of(again, "echo usable") == "usable");
    const auto only_the_second = [&] {
      int pods = 0;
      for (const auto& entry : fs::directory_iterator(e.lab().dir() / "sandboxes")) {
        ++pods;
        if (entry.path().filename() != again.id) return false;
      }
      return pods == 1;
    };
    CHECK(wait_until(only_the_second, 30s));
    CHECK(e.state(again) == cri::SANDBOX_READY);
  });
}

}  // namespace kuasar::test
