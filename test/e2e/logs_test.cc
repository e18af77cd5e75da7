#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <random>
#include <string>

#include "e2e/table.h"

// What a container writes arrives in its log, every byte of it.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

// Bytes of every value without "\r\n", which containerd's log writer turns into "\n".
std::string binary_noise(std::size_t size) {
  std::mt19937 random(20260101);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  for (std::size_t i = 1; i < size; ++i) {
    if (bytes[i - 1] == '\r' && bytes[i] == '\n') bytes[i] = 'x';
  }
  return bytes;
}

cri::ContainerConfig with_volume(cri::ContainerConfig config, const fs::path& host,
                                 const std::string& inside) {
  cri::Mount* mount = config.add_mounts();
  mount->set_host_path(host);
  mount->set_container_path(inside);
  mount->set_readonly(true);
  return config;
}

}  // namespace

TEST_CASE("T12: logs are byte for byte: 1 MiB of binary without a final newline", "[e2e][table]") {
  run_case([](Case& e) {
    std::string noise = binary_noise(1 << 20);
    if (noise.back() == '\n') noise.back() = 'x';
    write_text(e.scratch() / "noise", noise);
    const Pod pod = e.run_pod();
    const Finished end =
        e.run(pod, with_volume(e.container_config({"cat", "/data/noise"}), e.scratch(), "/data"));
    CHECK(end.status.exit_code() == 0);
    CHECK(end.log.out.size() == noise.size());
    CHECK((end.log.out == noise));
    CHECK(end.log.err.empty());
  });
}

TEST_CASE("T12: logs keep both streams apart and a last line without its newline", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    Finished end = e.finish(e.shell(pod, "echo one; printf two; echo three >&2; printf four >&2"));
    CHECK(end.log.out == "one\ntwo");
    CHECK(end.log.err == "three\nfour");
    end = e.finish(e.shell(pod, "printf '\\n\\n\\000\\377 x\\n'"));
    CHECK(end.log.out == std::string("\n\n\0\377 x\n", 7));
    end = e.finish(e.shell(pod, "true"));
    CHECK(end.log.out.empty());
    CHECK(end.log.err.empty());
  });
}

TEST_CASE("logs: /dev/stdout and /dev/stderr can be opened anew by any user", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; echo self >/proc/self/fd/1"});
    config.mutable_linux()->mutable_security_context()->mutable_run_as_user()->set_value(1000);
    const Finished end = e.run(pod, config);
    CHECK(end.log.out == "out\nself\n");
    CHECK(end.log.err == "err\n");
  });
}

TEST_CASE("logs: a fast writer loses nothing", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Finished end = e.finish(e.shell(pod, "seq 1 50000"));
    const std::vector<std::string> lines = lines_of(end.log.out);
    REQUIRE(lines.size() == 50000);
    CHECK(lines.front() == "1");
    CHECK(lines.back() == "50000");
  });
}

TEST_CASE("volumes: read-write is seen on both sides, read-only refuses writes", "[e2e][table]") {
  run_case([](Case& e) {
    fs::create_directory(e.scratch() / "rw");
    fs::create_directory(e.scratch() / "ro");
    write_text(e.scratch() / "ro/given", "from the host\n");
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c",
         "cat /ro/given; echo from the container >/rw/made; echo x >/ro/new || echo refused"});
    cri::Mount* writable = config.add_mounts();
    writable->set_host_path(e.scratch() / "rw");
    writable->set_container_path("/rw");
    config = with_volume(config, e.scratch() / "ro", "/ro");
    const Finished end = e.run(pod, config);
    CHECK(end.log.out == "from the host\nrefused\n");
    CHECK(end.log.err.find("Read-only file system") != std::string::npos);
    CHECK(read_text(e.scratch() / "rw/made") == "from the container\n");
    CHECK_FALSE(fs::exists(e.scratch() / "ro/new"));

    // Another container of the pod finds what the first one wrote.
    const Finished other =
        e.run(pod, with_volume(e.container_config({"cat", "/v/made"}), e.scratch() / "rw", "/v"));
    CHECK(other.log.out == "from the container\n");
  });
}

TEST_CASE("volumes: a single file, and a source that does not exist yet", "[e2e][table]") {
  run_case([](Case& e) {
    write_text(e.scratch() / "single", "alone\n");
    const Pod pod = e.run_pod();
    cri::ContainerConfig config =
        e.container_config({"sh", "-c", "cat /etc/single; touch /new/x; ls /new"});
    config = with_volume(config, e.scratch() / "single", "/etc/single");
    cri::Mount* made = config.add_mounts();
    made->set_host_path(e.scratch() / "made/below");
    made->set_container_path("/new");
    CHECK(e.run(pod, config).log.out == "alone\nx\n");
    CHECK(fs::exists(e.scratch() / "made/below/x"));
  });
}

TEST_CASE("a read-only root filesystem refuses writes", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c",
         "for f in /x /etc/hostname /etc/hosts /etc/resolv.conf; do"
         "  (echo x >$f) 2>/dev/null && echo wrote $f; done; echo x >/dev/shm/x && echo shm"});
    config.mutable_linux()->mutable_security_context()->set_readonly_rootfs(true);
    CHECK(e.run(pod, config).log.out == "shm\n");
  });
}

}  // namespace kuasar::test
