#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>

#include "e2e/table.h"
#include "support/tmpfs.h"

// Volumes of WebAssembly containers that CRI asks more of than read-only or not.

namespace kuasar::test {

using Catch::Matchers::StartsWith;

// A handler with a runtime_type of its own would crash containerd 2.1.9 here (T14c), whatever its
// shim tells of its features: containerd asks only that of io.containerd.runc.v2
// (internal/cri/server/service.go, introspectRuntimeFeatures).
TEST_CASE("T14: wasm: a volume is read-only with all that is mounted below", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const pid_t containerd = e.lab().containerd_pid();
    const Tmpfs volume(e.scratch() / "volume");
    const Tmpfs below(volume.path() / "below");
    const Pod pod = e.run_pod();
    const auto written = [&](bool recursive) {
      cri::ContainerConfig config =
          wasm_config(e, {"/tool.wasm", "put", "/vol/below/new", "x", "put", "/vol/new", "x"});
      cri::Mount* mount = config.add_mounts();
      mount->set_host_path(volume.path());
      mount->set_container_path("/vol");
      mount->set_readonly(true);
      mount->set_recursive_read_only(recursive);
      mount->set_propagation(cri::PROPAGATION_PRIVATE);
      return e.run(pod, config).log.err;
    };
    CHECK_THAT(written(false), StartsWith("put /vol/new: "));
    CHECK(std::filesystem::exists(below.path() / "new"));
    std::filesystem::remove(below.path() / "new");
    CHECK_THAT(written(true), StartsWith("put /vol/below/new: "));
    CHECK_FALSE(std::filesystem::exists(below.path() / "new"));
    CHECK(e.lab().healthy());
    CHECK(e.lab().containerd_pid() == containerd);
  });
}

}  // namespace kuasar::test
