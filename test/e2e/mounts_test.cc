#include <fmt/format.h>
#include <sys/mount.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <string>

#include "e2e/table.h"
#include "support/process.h"
#include "support/tmpfs.h"
#include "support/wait.h"

// Volumes: propagation, recursive read-only, and paths that want to lead elsewhere.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;

cri::Mount* add_volume(cri::ContainerConfig& config, const fs::path& host,
                       const std::string& inside) {
  cri::Mount* mount = config.add_mounts();
  mount->set_host_path(host);
  mount->set_container_path(inside);
  return mount;
}

// What a container sees that waits until `wanted` is mounted on the host after its start.
bool sees_later_mount(Case& e, const Pod& pod, const fs::path& host, cri::MountPropagation how) {
  cri::ContainerConfig config = e.container_config(
      {"sh", "-c", "echo up; while [ ! -e /vol/go ]; do sleep 0.05; done; ls /vol/later"});
  add_volume(config, host, "/vol")->set_propagation(how);
  const Container container = e.start(pod, config);
  e.await_output(container, "up\n");
  bool seen = false;
  {
    const Tmpfs later(host / "later");
    write_text(later.path() / "mark", "");
    write_text(host / "go", "");
    seen = e.finish(container).log.out.find("mark") != std::string::npos;
  }
  fs::remove(host / "go");
  return seen;
}

// Whether what a container mounts is seen on the host.
bool shows_its_mount(Case& e, const Pod& pod, const fs::path& host, cri::MountPropagation how) {
  cri::ContainerConfig config = e.container_config(
      {"sh", "-c",
       "mkdir -p /vol/theirs && mount -t tmpfs none /vol/theirs && touch /vol/theirs/mark && "
       "echo up && exec sleep 3600"});
  config.mutable_linux()->mutable_security_context()->set_privileged(true);
  add_volume(config, host, "/vol")->set_propagation(how);
  const Container container = e.start(pod, config);
  e.await_output(container, "up\n");
  const bool seen = fs::exists(host / "theirs/mark");
  CHECK(e.cri().stop_container(container.id, 0).has_value());
  // A mount that came out stays, as containers that do this undo it themselves.
  if (seen) CHECK(::umount2((host / "theirs").c_str(), 0) == 0);
  return seen;
}

}  // namespace

TEST_CASE("volumes: mounts made later come in, go out, or stay apart, as asked", "[e2e][table]") {
  run_case([](Case& e) {
    const Tmpfs shared(e.scratch() / "shared", MS_SHARED);
    cri::PodSandboxConfig config = e.pod_config();
    config.mutable_linux()->mutable_security_context()->set_privileged(true);
    const Pod pod = e.run_pod(config);
    CHECK_FALSE(sees_later_mount(e, pod, shared.path(), cri::PROPAGATION_PRIVATE));
    CHECK(sees_later_mount(e, pod, shared.path(), cri::PROPAGATION_HOST_TO_CONTAINER));
    CHECK(sees_later_mount(e, pod, shared.path(), cri::PROPAGATION_BIDIRECTIONAL));
    CHECK_FALSE(shows_its_mount(e, pod, shared.path(), cri::PROPAGATION_PRIVATE));
    CHECK_FALSE(shows_its_mount(e, pod, shared.path(), cri::PROPAGATION_HOST_TO_CONTAINER));
    CHECK(shows_its_mount(e, pod, shared.path(), cri::PROPAGATION_BIDIRECTIONAL));
  });
}

TEST_CASE("volumes: propagation that the host cannot give is refused in words", "[e2e][table]") {
  run_case([](Case& e) {
    const Tmpfs apart(e.scratch() / "apart");
    const Pod pod = e.run_pod();
    for (const auto how : {cri::PROPAGATION_HOST_TO_CONTAINER, cri::PROPAGATION_BIDIRECTIONAL}) {
      cri::ContainerConfig config = e.container_config({"true"});
      add_volume(config, apart.path(), "/vol")->set_propagation(how);
      const auto created = e.try_create(pod, config);
      REQUIRE_FALSE(created.has_value());
      CHECK_THAT(created.error().message, ContainsSubstring("is mounted on"));
    }
    CHECK(e.output_of(pod, "echo next") == "next");
  });
}

// With a runtime_type other than io.containerd.runc.v2 such a mount crashes containerd 2.1.9
// (T14c).
TEST_CASE("T14: volumes: read-only with all that is mounted below, where that is asked for",
          "[e2e][table]") {
  run_case([](Case& e) {
    const pid_t containerd = e.lab().containerd_pid();
    const Tmpfs volume(e.scratch() / "volume");
    const Tmpfs below(volume.path() / "below");
    const Pod pod = e.run_pod();
    const auto writes = [&](bool recursive) {
      cri::ContainerConfig config = e.container_config(
          {"sh", "-c",
           "for d in /vol /vol/below; do (echo x >$d/new) 2>/dev/null && echo $d; done; true"});
      cri::Mount* mount = add_volume(config, volume.path(), "/vol");
      mount->set_readonly(true);
      mount->set_recursive_read_only(recursive);
      mount->set_propagation(cri::PROPAGATION_PRIVATE);
      return e.try_create(pod, config);
    };
    const auto plain = writes(false);
    REQUIRE(plain.has_value());
    CHECK(e.cri().start_container(plain->id).has_value());
    CHECK(e.finish(*plain).log.out == "/vol/below\n");

    const auto recursive = writes(true);
    if (runtime_features(e).recursive_read_only_mounts()) {
      REQUIRE(recursive.has_value());
      CHECK(e.cri().start_container(recursive->id).has_value());
      CHECK(e.finish(*recursive).log.out.empty());
    } else {
      REQUIRE_FALSE(recursive.has_value());
      CHECK_THAT(recursive.error().message, ContainsSubstring("recursive read-only"));
    }
    CHECK(e.lab().healthy());
    CHECK(e.lab().containerd_pid() == containerd);
  });
}

TEST_CASE("volumes: a link on the host is followed there, one in the image stays in the image",
          "[e2e][table]") {
  run_case([](Case& e) {
    fs::create_directory(e.scratch() / "real");
    write_text(e.scratch() / "real/given", "given\n");
    fs::create_directory_symlink(e.scratch() / "real", e.scratch() / "link");
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config({"cat", "/vol/given"});
    add_volume(config, e.scratch() / "link", "/vol");
    CHECK(e.run(pod, config).log.out == "given\n");

    // A place in the container that wants to lie on the host.
    const fs::path outside = e.scratch() / "outside";
    fs::create_directory(outside);
    cri::ContainerConfig climbing = e.container_config({"true"});
    add_volume(climbing, e.scratch() / "real", "/../../../../../.." + outside.string() + "/made");
    const auto created = e.try_create(pod, climbing);
    if (created) (void)e.cri().start_container(created->id);
    CHECK(fs::is_empty(outside));

    // Links inside of a volume are the container's own business: they lead to its own root.
    fs::create_directory(e.scratch() / "trap");
    fs::create_symlink(outside, e.scratch() / "trap/out");
    cri::ContainerConfig trapped = e.container_config(
        {"sh", "-c", "(echo x >/vol/out/new) 2>/dev/null; ls /vol/out 2>/dev/null | wc -l"});
    add_volume(trapped, e.scratch() / "trap", "/vol");
    CHECK(trimmed(e.run(pod, trapped).log.out) == "0");
    CHECK(fs::is_empty(outside));
  });
}

// runc refuses it; crun lets a container hide its own /proc.
TEST_CASE("volumes: one over /proc is refused in words, or harms nobody else", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    for (const char* inside : {"/proc", "/proc/sys"}) {
      cri::ContainerConfig config = e.container_config({"true"});
      add_volume(config, e.scratch(), inside);
      const Container container = e.create(pod, config);
      const auto started = e.cri().start_container(container.id);
      if (started) {
        e.finish(container);
      } else {
        CHECK_THAT(started.error().message, ContainsSubstring("proc"));
      }
      CHECK(e.cri().remove_container(container.id).has_value());
    }
    CHECK(e.output_of(pod, "echo next") == "next");
  });
}

}  // namespace kuasar::test
