#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <string>

#include "e2e/table.h"

// The OCI runtime that a runtime handler names (BinaryName).

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;

std::string said_by_exec(Case& e, const Container& container) {
  const auto answer = e.cri().exec_sync(container.id, {"echo", "alive"}, 0);
  INFO("ExecSync: " << (answer ? "" : answer.error().message));
  REQUIRE(answer.has_value());
  return answer->stdout();
}

}  // namespace

// The daemon's own default is a program that does not exist: whatever would use it fails.
TEST_CASE("runtime: a handler's BinaryName makes its containers, and a restart knows which",
          "[e2e][table]") {
  const std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  for (const SandboxerUnderTest& sandboxer : sandboxers_under_test()) {
    if (sandboxer.program != "runc-sandboxer") SKIP(sandboxer.name << " runs no OCI runtime");
    Lab lab(sandboxer, "runtime = \"/nowhere/runc\"\n");
    Case e(lab);
    const cri::PodSandboxConfig config = e.pod_config();
    const auto id = lab.cri().run_pod(config, lab.named_handler());
    INFO("RunPodSandbox: " << (id ? "" : id.error().message));
    REQUIRE(id.has_value());
    const Pod pod{*id, config};
    const Container container = e.sleeper(pod);
    CHECK(said_by_exec(e, container) == "alive\n");
    const fs::path record =
        lab.dir() / "sandboxes" / pod.id / "containers" / container.id / "container.json";
    CHECK_THAT(read_text(record), ContainsSubstring("\"" + lab.named_runtime().string() + "\""));

    lab.kill_sandboxer();
    lab.start_sandboxer();
    CHECK(said_by_exec(e, container) == "alive\n");
    REQUIRE(lab.cri().stop_container(container.id, 0).has_value());
    CHECK(e.finish(container).status.exit_code() == 137);
    REQUIRE(lab.cri().remove_container(container.id).has_value());
    CHECK_FALSE(fs::exists(lab.dir() / "oci" / container.id));
    e.clean_up();
  }
}

}  // namespace kuasar::test
