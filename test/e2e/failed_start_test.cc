#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <functional>
#include <string>

#include "e2e/table.h"

// What cannot be done is said in words that help, and leaves nothing behind.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
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
  run_case_with("runtime = \"/nowhere/runc\"\n", [](Case& e) {
    const Pod pod = e.run_pod();
    CHECK_THAT(start_error(e, pod, e.container_config({"true"})),
               ContainsSubstring("/nowhere/runc"));
  });
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

TEST_CASE("T19: an SELinux label that is none is refused by the field's name", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("these words");
    cri::PodSandboxConfig config = e.pod_config();
    auto* options = config.mutable_linux()->mutable_security_context()->mutable_selinux_options();
    options->set_level("top secret");
    CHECK_THAT(pod_error(e, config), ContainsSubstring("selinux_options.level"));
    options->set_level("s0:c1,c2");
    options->set_type("a:b");
    CHECK_THAT(pod_error(e, config), ContainsSubstring("selinux_options.type"));
  });
}

TEST_CASE("T19: on a host without SELinux a label has no effect, as with containerd's own shim",
          "[e2e][table]") {
  run_case([](Case& e) {
    if (fs::exists("/sys/fs/selinux/enforce")) SKIP("this host has SELinux");
    cri::PodSandboxConfig config = e.pod_config();
    config.mutable_linux()->mutable_security_context()->mutable_selinux_options()->set_level(
        "s0:c1,c2");
    const Pod pod = e.run_pod(config);
    cri::ContainerConfig container = e.container_config({"echo", "runs"});
    container.mutable_linux()->mutable_security_context()->mutable_selinux_options()->set_level(
        "s0:c1,c2");
    CHECK(e.run(pod, container).log.out == "runs\n");
  });
}

}  // namespace kuasar::test
