#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <functional>
#include <string>

#include "e2e/table.h"

// What cannot be done is said in words that help, and leaves nothing behind.

namespace kuasar::test {
namespace {

using Catch::Matchers::ContainsSubstring;

std::string start_error(Case& e, const Pod& pod, const cri::ContainerConfig& config) {
  const Container container = e.create(pod, config);
  const auto started = e.cri().start_container(container.id);
  REQUIRE_FALSE(started.has_value());
  const cri::ContainerStatus status = e.status(container);
  CHECK(status.state() == cri::CONTAINER_EXITED);
  CHECK(status.reason() == "StartError");
  CHECK(e.cri().remove_container(container.id).has_value());
  return started.error().message;
}

std::string pod_error(Case& e, const cri::PodSandboxConfig& config) {
  const auto pod = e.try_run_pod(config);
  REQUIRE_FALSE(pod.has_value());
  const auto pods = e.cri().list_pods();
  REQUIRE(pods.has_value());
  CHECK(pods->empty());
  return pod.error().message;
}

// The error of the first step that fails, CreateContainer or StartContainer.
std::string container_error(Case& e, const Pod& pod, const cri::ContainerConfig& config) {
  const auto created = e.try_create(pod, config);
  if (!created) return created.error().message;
  const auto started = e.cri().start_container(created->id);
  REQUIRE_FALSE(started.has_value());
  CHECK(e.cri().remove_container(created->id).has_value());
  return started.error().message;
}

}  // namespace

TEST_CASE("failed start: a missing binary is named, and the pod goes on", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const std::string words = start_error(e, pod, e.container_config({"/no/such/program"}));
    CHECK_THAT(words, ContainsSubstring("/no/such/program"));
    CHECK_THAT(words, ContainsSubstring("no such file or directory"));
    CHECK_THAT(start_error(e, pod, e.container_config({"/etc/passwd"})),
               ContainsSubstring("permission denied"));
    CHECK(e.output_of(pod, "echo next") == "next");
  });
}

TEST_CASE("failed start: a bad working directory and a bad image user are told", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config({"true"});
    config.set_working_dir("/etc/passwd/below");
    CHECK_THAT(start_error(e, pod, config), ContainsSubstring("/etc/passwd: not a directory"));

    config = e.container_config({"true"});
    config.mutable_linux()->mutable_security_context()->set_run_as_username("no-such-user");
    const auto created = e.try_create(pod, config);
    REQUIRE_FALSE(created.has_value());
    // containerd itself looks users up in the image; these are its words.
    CHECK_THAT(created.error().message, ContainsSubstring("no users found"));
    CHECK(e.output_of(pod, "echo next") == "next");
  });
}

TEST_CASE("failed start: a missing OCI runtime is named", "[e2e][table]") {
  const std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  for (const SandboxerUnderTest& sandboxer : sandboxers_under_test()) {
    if (sandboxer.program != "runc-sandboxer") SKIP(sandboxer.name << " has no such setting");
    Lab lab(sandboxer, "runtime = \"/nowhere/runc\"\n");
    Case e(lab);
    const Pod pod = e.run_pod();
    CHECK_THAT(start_error(e, pod, e.container_config({"true"})),
               ContainsSubstring("/nowhere/runc"));
    e.clean_up();
  }
}

TEST_CASE("T10: a pod that cannot start leaves nothing and says why", "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    (*config.mutable_linux()->mutable_sysctls())["kernel.no_such_setting"] = "1";
    CHECK_THAT(pod_error(e, config), ContainsSubstring("no_such_setting"));
    config = e.pod_config();
    (*config.mutable_linux()->mutable_sysctls())["net.ipv4.ip_unprivileged_port_start"] = "many";
    CHECK_THAT(pod_error(e, config), ContainsSubstring("ip_unprivileged_port_start"));
  });
}

TEST_CASE("T25: a pod with a user namespace is refused by the field's name", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a refusal");
    cri::UserNamespace users;
    users.set_mode(cri::POD);
    for (cri::IDMapping* mapping : {users.add_uids(), users.add_gids()}) {
      mapping->set_host_id(100000);
      mapping->set_length(65536);
    }
    for (cri::PodSandboxConfig config : {e.pod_config(), e.host_network_config()}) {
      *namespace_options(config)->mutable_userns_options() = users;
      CHECK_THAT(pod_error(e, config), ContainsSubstring("userns_options"));
    }
  });
}

TEST_CASE("T19: a pod with an SELinux label is refused by the field's name", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a refusal");
    cri::PodSandboxConfig config = e.pod_config();
    config.mutable_linux()->mutable_security_context()->mutable_selinux_options()->set_level(
        "s0:c1,c2");
    CHECK_THAT(pod_error(e, config), ContainsSubstring("selinux_options"));
  });
}

TEST_CASE("what is not served yet is refused by the field's name, never ignored", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("a refusal");
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_pid(cri::NODE);
    CHECK_THAT(pod_error(e, config), ContainsSubstring("pid"));
    config = e.pod_config();
    namespace_options(config)->set_ipc(cri::NODE);
    CHECK_THAT(pod_error(e, config), ContainsSubstring("ipc"));

    const Pod pod = e.run_pod();
    cri::ContainerConfig container;
    const Container running = e.sleeper(pod);
    container = e.container_config({"true"});
    namespace_options(container)->set_pid(cri::TARGET);
    namespace_options(container)->set_target_id(running.id);
    CHECK_THAT(container_error(e, pod, container), ContainsSubstring("pid"));

    CHECK(e.status(running).state() == cri::CONTAINER_RUNNING);
  });
}

}  // namespace kuasar::test
