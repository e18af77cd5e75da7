#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "e2e/table.h"
#include "support/wait.h"

// Pods with a user namespace of their own: root inside is nobody outside (T25).

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;

cri::PodSandboxConfig mapped_config(Case& e) {
  cri::PodSandboxConfig config = e.pod_config();
  map_ids(namespace_options(config));
  return config;
}

cri::ContainerConfig mapped(Case& e, const std::string& script,
                            cri::NamespaceMode pid = cri::CONTAINER) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", script});
  map_ids(namespace_options(config));
  namespace_options(config)->set_pid(pid);
  return config;
}

std::string output(Case& e, const Pod& pod, const cri::ContainerConfig& config) {
  const Finished end = e.run(pod, config);
  INFO("said: " << end.log.out << end.log.err);
  REQUIRE(end.status.exit_code() == 0);
  return trimmed(end.log.out);
}

void run_mapped(const std::function<void(Case&)>& body) {
  run_case([&](Case& e) {
    if (!runtime_features(e).user_namespaces()) {
      SKIP("the lab's OCI runtime has no user namespaces with idmapped mounts (runc >= 1.2, crun)");
    }
    body(e);
  });
}

std::string refusal(Case& e, const std::function<void(cri::UserNamespace*)>& change) {
  cri::PodSandboxConfig config = mapped_config(e);
  change(namespace_options(config)->mutable_userns_options());
  const auto pod = e.try_run_pod(config);
  REQUIRE_FALSE(pod.has_value());
  return pod.error().message;
}

}  // namespace

TEST_CASE("T25 userns: what CRI does not allow is refused and leaves nothing", "[e2e][table]") {
  run_case([](Case& e) {
    refusal(e, [](cri::UserNamespace* asked) { asked->set_mode(cri::CONTAINER); });
    refusal(e, [](cri::UserNamespace* asked) { asked->set_mode(cri::TARGET); });
    refusal(e, [](cri::UserNamespace* asked) { asked->set_mode(cri::NODE); });
    refusal(e, [](cri::UserNamespace* asked) { asked->add_uids()->set_length(1); });
    refusal(e, [](cri::UserNamespace* asked) { asked->mutable_uids(0)->set_container_id(1); });
    refusal(e, [](cri::UserNamespace* asked) { asked->clear_gids(); });
    CHECK(e.cri().list_pods()->empty());
  });
}

TEST_CASE("T25 userns: root inside is an id of the host's without rights", "[e2e][table]") {
  run_mapped([](Case& e) {
    const Pod pod = e.run_pod(mapped_config(e));
    const Container container = e.start(
        pod, mapped(e, "id -u; cat /proc/self/uid_map /proc/self/gid_map; exec sleep 3610"));
    e.await_output(container, "65536\n");
    std::string said = e.log(container).out;
    REQUIRE(wait_until([&] { return lines_of(said = e.log(container).out).size() == 3; },
                       std::chrono::seconds(5)));
    const std::vector<std::string> lines = lines_of(said);
    CHECK(lines[0] == "0");
    for (const std::string& map : {lines[1], lines[2]}) {
      CHECK_THAT(map, ContainsSubstring("1000000"));
      CHECK_THAT(map, ContainsSubstring("65536"));
    }
    std::set<pid_t> found;
    REQUIRE(wait_until([&] { return (found = processes_with("sleep 3610")).size() == 1; },
                       std::chrono::seconds(5)));
    struct stat st {};
    REQUIRE(::stat(("/proc/" + std::to_string(*found.begin())).c_str(), &st) == 0);
    CHECK(st.st_uid == kFirstHostId);
    // Whoever comes by exec is in it, too.
    const auto exec =
        e.cri().exec_sync(container.id, {"sh", "-c", "id -u; cat /proc/self/uid_map"}, 10);
    REQUIRE(exec.has_value());
    CHECK(exec->stdout().starts_with("0\n"));
    CHECK_THAT(exec->stdout(), ContainsSubstring("1000000"));
  });
}

TEST_CASE("T25 userns: namespaces of the pod belong to its user namespace", "[e2e][table]") {
  run_mapped([](Case& e) {
    const Pod pod = e.run_pod(mapped_config(e));
    cri::ContainerConfig config = mapped(
        e,
        "set -e; for ns in user net ipc uts; do echo $ns=$(readlink /proc/self/ns/$ns); done;"
        "ip link add dummy7 type dummy 2>/dev/null || ip link set lo down; hostname inner; "
        "hostname");
    auto* capabilities = config.mutable_linux()->mutable_security_context()->mutable_capabilities();
    capabilities->add_add_capabilities("NET_ADMIN");
    capabilities->add_add_capabilities("SYS_ADMIN");
    const std::string said = output(e, pod, config);
    auto namespaces = parse_pairs(said);
    for (const char* kind : {"user", "net", "ipc", "uts"}) {
      CAPTURE(kind);
      CHECK_FALSE(namespaces[kind].empty());
      CHECK(namespaces[kind] != host_namespace(kind));
    }
    CHECK(lines_of(said).back() == "inner");
    // The next container is in the same ones.
    auto next = parse_pairs(output(
        e, pod,
        mapped(e, "for ns in user net ipc uts; do echo $ns=$(readlink /proc/self/ns/$ns); done")));
    for (const char* kind : {"user", "net", "ipc", "uts"}) CHECK(next[kind] == namespaces[kind]);
  });
}

TEST_CASE("T25 userns: the image's and the pod's files belong to the pod's root", "[e2e][table]") {
  run_mapped([](Case& e) {
    const Pod pod = e.run_pod(mapped_config(e));
    CHECK(output(
              e, pod,
              mapped(e, "stat -c '%u %g' / /bin /etc/hosts /etc/resolv.conf /dev/shm | sort -u")) ==
          "0 0");
    CHECK(output(e, pod, mapped(e, "echo x >/root-file && stat -c %u /root-file")) == "0");
    output(e, pod, mapped(e, "echo 192.0.2.7 peer >>/etc/hosts; echo kept >/dev/shm/note"));
    CHECK(output(e, pod, mapped(e, "grep -w peer /etc/hosts; cat /dev/shm/note; hostname")) ==
          "192.0.2.7 peer\nkept\n" + pod.config.hostname());
  });
}

TEST_CASE("T25 userns: a volume with mappings keeps its owners", "[e2e][table]") {
  run_mapped([](Case& e) {
    const fs::path volume = e.scratch() / "volume";
    fs::create_directory(volume);
    std::ofstream(volume / "of-root") << "data\n";
    std::ofstream(volume / "of-seven") << "data\n";
    REQUIRE(::chown((volume / "of-seven").c_str(), 7, 7) == 0);
    const Pod pod = e.run_pod(mapped_config(e));
    cri::ContainerConfig config =
        mapped(e, "stat -c '%n %u' /v/of-*; echo new >/v/new; stat -c %u /v/new");
    cri::Mount* mount = config.add_mounts();
    mount->set_host_path(volume.string());
    mount->set_container_path("/v");
    set_mapping(mount->add_uidmappings());
    set_mapping(mount->add_gidmappings());
    CHECK(output(e, pod, config) == "/v/of-root 0\n/v/of-seven 7\n0");
    struct stat st {};
    REQUIRE(::stat((volume / "new").c_str(), &st) == 0);
    CHECK(st.st_uid == 0);
  });
}

TEST_CASE("T25 T31 userns: kernel settings, low ports, and the log by re-opening it",
          "[e2e][table]") {
  run_mapped([](Case& e) {
    cri::PodSandboxConfig config = mapped_config(e);
    (*config.mutable_linux()->mutable_sysctls())["kernel.shm_rmid_forced"] = "1";
    (*config.mutable_linux()->mutable_sysctls())["net.core.somaxconn"] = "777";
    const Pod pod = e.run_pod(config);
    CHECK(output(e, pod,
                 mapped(e,
                        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start "
                        "/proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn")) ==
          "0\n1\n777");
    const Finished end =
        e.run(pod, mapped(e, "echo first; echo again >/dev/stdout; echo wrong >/dev/stderr"));
    CHECK(end.status.exit_code() == 0);
    CHECK(end.log.out == "first\nagain\n");
    CHECK(end.log.err == "wrong\n");
    cri::ContainerConfig user = mapped(e, "id -u; echo again >/dev/stdout");
    user.mutable_linux()->mutable_security_context()->mutable_run_as_user()->set_value(1000);
    CHECK(output(e, pod, user) == "1000\nagain");
  });
}

TEST_CASE("T25 userns: a PID namespace that the pod shares", "[e2e][table]") {
  run_mapped([](Case& e) {
    cri::PodSandboxConfig config = mapped_config(e);
    namespace_options(config)->set_pid(cri::POD);
    const Pod pod = e.run_pod(config);
    const Container other = e.start(pod, mapped(e, "echo up; exec sleep 3611", cri::POD));
    e.await_output(other, "up\n");
    CHECK(output(e, pod, mapped(e, "ps -o args | grep -c '[s]leep 3611'", cri::POD)) == "1");
    CHECK(output(e, pod, mapped(e, "[ $$ -ne 1 ] && echo not-first", cri::POD)) == "not-first");
    if (!e.ours()) return;
    const auto probe = [&](const std::string& script) {
      return output(e, pod, mapped(e, script, cri::POD));
    };
    CHECK(probe("ls -A /proc/1/root/ 2>/dev/null | wc -l") == "0");
    CHECK(probe("grep '^Uid:' /proc/1/status") == "Uid:\t65534\t65534\t65534\t65534");
    CHECK(probe("grep '^CapPrm:' /proc/1/status") == "CapPrm:\t0000000000000000");
    CHECK(probe("grep '^CapBnd:' /proc/1/status") == "CapBnd:\t0000000000000000");
    CHECK(probe("grep '^NoNewPrivs:' /proc/1/status") == "NoNewPrivs:\t1");
  });
}

TEST_CASE("T25 userns: in the host's network", "[e2e][table]") {
  run_mapped([](Case& e) {
    cri::PodSandboxConfig config = e.host_network_config();
    map_ids(namespace_options(config));
    const Pod pod = e.run_pod(config);
    const std::string said =
        output(e, pod, mapped(e, "readlink /proc/self/ns/net; cat /proc/self/uid_map"));
    CHECK_THAT(said, ContainsSubstring(host_namespace("net")));
    CHECK_THAT(said, ContainsSubstring("1000000"));
  });
}

TEST_CASE("T25 wasm: userns: a module runs in its pod's user namespace", "[e2e][wasm]") {
  run_wasm_case([](Case& e) {
    if (!runtime_features(e).user_namespaces()) {
      SKIP("containerd asks runc of its PATH, which has no user namespaces with idmapped mounts");
    }
    const Pod pod = e.run_pod(mapped_config(e));
    cri::ContainerConfig config = wasm_config(
        e, {"/tool.wasm", "put", "/new", "mine", "cat", "/new", "print", "up", "sleep", "3600"});
    map_ids(namespace_options(config));
    const Container container = e.start(pod, config);
    e.await_output(container, "up\n");
    CHECK(e.log(container).out == "mineup\n");
    const std::set<pid_t> pids = processes_with("/tool.wasm put /new");
    REQUIRE(pids.size() == 1);
    const std::string proc = fmt::format("/proc/{}/", *pids.begin());
    CHECK_THAT(read_text(proc + "uid_map"), ContainsSubstring("1000000"));
    CHECK_THAT(read_text(proc + "status"), ContainsSubstring("Uid:\t1000000\t1000000"));
    const auto answer = e.cri().exec_sync(container.id, {"/tool.wasm", "cat", "/new"}, 20);
    INFO((answer ? "" : answer.error().message));
    REQUIRE(answer);
    CHECK(answer->stdout() == "mine");
    REQUIRE(e.cri().stop_container(container.id, 10));
    CHECK(e.finish(container).status.exit_code() == 143);
  });
}

}  // namespace kuasar::test
