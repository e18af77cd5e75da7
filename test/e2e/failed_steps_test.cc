#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <functional>
#include <span>
#include <string>

#include "e2e/table.h"
#include "support/wait.h"

// An error, or the daemon's death, in each step of RunPodSandbox and of a container's creation and
// start: the call fails in words, the census is equal, and the next one works. The steps are
// failpoints of the daemon (base/failpoint.h), so that the tests are skipped without them.

namespace kuasar::test {
namespace {

using Catch::Matchers::ContainsSubstring;

struct Step {
  const char* failpoint;
  /// Of a pod with a user namespace only.
  bool userns = false;
  /// What a container asks for that comes to the step.
  cri::NamespaceMode pid = cri::CONTAINER;
};

// In the order in which they are passed.
constexpr Step kPodSteps[] = {
    {"pod.dir"}, {"pod.noted"},   {"pod.starting"}, {"pod.cgroups"},    {"pod.files"},
    {"pod.shm"}, {"pod.sysctls"}, {"pod.ipc"},      {"pod.namespaces"}, {"pod.running"},
};
constexpr Step kUsernsPodSteps[] = {
    {"pod.shm", true},
    {"pod.userns", true},
    {"pod.sysctls", true},
    {"pod.namespaces", true},
};
constexpr Step kContainerSteps[] = {
    {"container.bundle"},
    {"container.dir"},
    {"container.pid-init", false, cri::POD},
    {"container.target", false, cri::TARGET},
    {"container.attached"},
    {"container.noted"},
    {"container.streams"},
    {"container.config"},
    {"container.rootfs"},
    {"container.runtime"},
    {"container.adopted"},
    {"container.created"},
    {"container.recorded"},
    {"container.start"},
    {"container.started"},
};
constexpr Step kUsernsContainerSteps[] = {
    {"container.pid-init", true, cri::POD},
    {"container.config", true},
    {"container.rootfs", true},
    {"container.adopted", true},
};

void run_steps(std::span<const Step> steps, const std::function<void(Case&, const Step&)>& body) {
  for (const Step& step : steps) {
    DYNAMIC_SECTION(step.failpoint << (step.userns ? ", user namespace" : "")) {
      run_case([&](Case& e) {
        e.only_ours("failpoints");
        if (!e.lab().has_failpoints()) SKIP("the sandboxer was built without failpoints");
        if (step.userns && !runtime_features(e).user_namespaces()) {
          SKIP("the lab's OCI runtime has no user namespaces with idmapped mounts");
        }
        body(e, step);
      });
    }
  }
}

cri::PodSandboxConfig pod_for(Case& e, const Step& step) {
  cri::PodSandboxConfig config = e.pod_config();
  if (step.userns) map_ids(namespace_options(config));
  // Every step has something to do.
  (*config.mutable_linux()->mutable_sysctls())["kernel.shm_rmid_forced"] = "1";
  config.mutable_linux()->set_cgroup_parent(e.lab().cgroup_parent() + "/made-by-us");
  return config;
}

cri::ContainerConfig container_for(Case& e, const Step& step, const Container& target) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", "echo up; exec sleep 3600"});
  if (step.userns) map_ids(namespace_options(config));
  namespace_options(config)->set_pid(step.pid);
  if (step.pid == cri::TARGET) namespace_options(config)->set_target_id(target.id);
  return config;
}

// The pod of a step that went wrong is unknown to everybody, and the same pod can be had at once.
void check_gone(Case& e, const cri::PodSandboxConfig& config) {
  const auto pods = e.cri().list_pods();
  REQUIRE(pods.has_value());
  CHECK(pods->empty());
  const Pod next = e.run_pod(config);
  CHECK(e.state(next) == cri::SANDBOX_READY);
}

void fail_pod(Case& e, const Step& step) {
  const cri::PodSandboxConfig config = pod_for(e, step);
  e.lab().arm(step.failpoint, "fail");
  const auto pod = e.try_run_pod(config);
  REQUIRE_FALSE(e.lab().disarm(step.failpoint));
  REQUIRE_FALSE(pod.has_value());
  CHECK_THAT(pod.error().message, ContainsSubstring(std::string("failpoint ") + step.failpoint));
  check_gone(e, config);
}

void kill_in_pod(Case& e, const Step& step) {
  const cri::PodSandboxConfig config = pod_for(e, step);
  e.lab().arm(step.failpoint, "kill");
  const auto pod = e.try_run_pod(config);
  REQUIRE_FALSE(e.lab().disarm(step.failpoint));
  REQUIRE_FALSE(pod.has_value());
  CHECK(wait_until([&] { return !e.lab().healthy(); }, std::chrono::seconds(5)));
  e.lab().start_sandboxer();
  check_gone(e, config);
}

void fail_container(Case& e, const Step& step) {
  const Pod pod = e.run_pod(pod_for(e, step));
  const Container first = e.start(pod, container_for(e, {"", step.userns}, {}));
  const cri::ContainerConfig config = container_for(e, step, first);
  const Container container = e.create(pod, config);
  e.lab().arm(step.failpoint, "fail");
  const auto started = e.cri().start_container(container.id);
  REQUIRE_FALSE(e.lab().disarm(step.failpoint));
  REQUIRE_FALSE(started.has_value());
  CHECK_THAT(started.error().message,
             ContainsSubstring(std::string("failpoint ") + step.failpoint));
  const cri::ContainerStatus status = e.status(container);
  CHECK(status.state() == cri::CONTAINER_EXITED);
  CHECK(status.reason() == "StartError");
  CHECK(e.cri().remove_container(container.id).has_value());
  CHECK(e.status(first).state() == cri::CONTAINER_RUNNING);
  cri::ContainerConfig again = config;
  again.mutable_metadata()->set_name(config.metadata().name() + "-again");
  e.await_output(e.start(pod, again), "up\n");
}

}  // namespace

TEST_CASE("T10: failed steps: an error in each step of RunPodSandbox leaves nothing",
          "[e2e][table][steps]") {
  run_steps(kPodSteps, fail_pod);
}

TEST_CASE("T10: failed steps: the daemon's death in each step of RunPodSandbox leaves nothing",
          "[e2e][table][steps]") {
  run_steps(kPodSteps, kill_in_pod);
}

TEST_CASE("failed steps: an error in each step of a container's way leaves the pod as it was",
          "[e2e][table][steps]") {
  run_steps(kContainerSteps, fail_container);
}

TEST_CASE("T10 T25: failed steps: with a user namespace an error leaves nothing",
          "[e2e][table][steps]") {
  run_steps(kUsernsPodSteps, fail_pod);
  run_steps(kUsernsContainerSteps, fail_container);
}

TEST_CASE("T10 T25: failed steps: with a user namespace the daemon's death leaves nothing",
          "[e2e][table][steps]") {
  run_steps(kUsernsPodSteps, kill_in_pod);
}

}  // namespace kuasar::test
