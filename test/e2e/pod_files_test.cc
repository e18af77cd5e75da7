#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "e2e/table.h"

// What a pod gives its containers: names, files, shared memory, kernel settings.

namespace kuasar::test {
namespace {

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

const char kPortStart[] = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
const char kPingGroups[] = "/proc/sys/net/ipv4/ping_group_range";

}  // namespace

TEST_CASE("pod files: hostname and hosts", "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    config.set_hostname("web-0");
    const Pod pod = e.run_pod(config);
    CHECK(e.output_of(pod, "hostname; cat /etc/hostname; echo $HOSTNAME") == "web-0\nweb-0\nweb-0");
    CHECK(e.output_of(pod, "grep -c localhost /etc/hosts") != "0");
    // The file is the pod's, not a container's: a write is seen by the next container.
    e.output_of(pod, "echo 192.0.2.7 peer >>/etc/hosts");
    CHECK(e.output_of(pod, "grep -w peer /etc/hosts") == "192.0.2.7 peer");
  });
}

TEST_CASE("pod files: DNS as the pod says, else the host's", "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    cri::DNSConfig* dns = config.mutable_dns_config();
    dns->add_servers("192.0.2.53");
    dns->add_servers("2001:db8::53");
    dns->add_searches("ns.svc.cluster.local");
    dns->add_searches("svc.cluster.local");
    dns->add_options("ndots:5");
    dns->add_options("timeout:2");
    const std::string resolv = e.output_of(e.run_pod(config), "cat /etc/resolv.conf");
    CHECK(lines_of(resolv) ==
          std::vector<std::string>{"search ns.svc.cluster.local svc.cluster.local",
                                   "nameserver 192.0.2.53", "nameserver 2001:db8::53",
                                   "options ndots:5 timeout:2"});

    CHECK(e.output_of(e.run_pod(), "cat /etc/resolv.conf") ==
          trimmed(read_text("/etc/resolv.conf")));
  });
}

TEST_CASE("pod files: /dev/shm is a tmpfs of 64 MiB that the pod's containers share",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    CHECK(e.output_of(pod, "df -k /dev/shm | awk 'END { print $2 }'") == "65536");
    CHECK(e.output_of(pod, "awk '$2 == \"/dev/shm\" { print $3 }' /proc/mounts") == "tmpfs");
    CHECK(e.output_of(pod, "stat -c %a /dev/shm") == "1777");
    e.output_of(pod, "echo kept >/dev/shm/note");
    CHECK(e.output_of(pod, "cat /dev/shm/note") == "kept");
    // Another pod has its own.
    CHECK(e.output_of(e.run_pod(), "ls -A /dev/shm") == "");
  });
}

TEST_CASE("T31: default sysctls, and those that the pod asks for", "[e2e][table]") {
  run_case([](Case& e) {
    const std::string show = std::string("cat ") + kPortStart + "; cat " + kPingGroups;
    CHECK(e.output_of(e.run_pod(), show) == "0\n0\t2147483647");

    cri::PodSandboxConfig config = e.pod_config();
    auto& sysctls = *config.mutable_linux()->mutable_sysctls();
    sysctls["net.ipv4.ip_unprivileged_port_start"] = "1000";
    sysctls["net.core.somaxconn"] = "777";
    sysctls["kernel.shm_rmid_forced"] = "1";
    sysctls["kernel.msgmax"] = "7777";
    const Pod pod = e.run_pod(config);
    CHECK(e.output_of(pod, std::string("cat ") + kPortStart +
                               " /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced "
                               "/proc/sys/kernel/msgmax") == "1000\n777\n1\n7777");
  });
}

TEST_CASE("T31: a pod in the host's network changes no sysctl of the host", "[e2e][table]") {
  run_case([](Case& e) {
    const std::string before = read_text(kPortStart) + read_text(kPingGroups);
    const Pod pod = e.run_pod(e.host_network_config());
    CHECK(e.output_of(pod, std::string("cat ") + kPortStart + " " + kPingGroups) ==
          trimmed(before));
    CHECK(read_text(kPortStart) + read_text(kPingGroups) == before);
  });
}

TEST_CASE("T32: the host's network comes with the host's UTS namespace and files", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod(e.host_network_config());
    CHECK(e.output_of(pod, "readlink /proc/self/ns/net") == host_namespace("net"));
    CHECK(e.output_of(pod, "readlink /proc/self/ns/uts") == host_namespace("uts"));
    CHECK(e.output_of(pod, "readlink /proc/self/ns/ipc") != host_namespace("ipc"));
    CHECK(e.output_of(pod, "hostname; cat /etc/hostname") == host_name() + "\n" + host_name());
    CHECK(e.output_of(pod, "cat /etc/hosts") == trimmed(read_text("/etc/hosts")));
    const auto status = e.cri().pod_status(pod.id);
    REQUIRE(status.has_value());
    CHECK(status->status().network().ip().empty());
  });
}

TEST_CASE("a pod cgroup that nobody made is made, and removed with the pod", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("removal of a cgroup_parent that it had to make");
    cri::PodSandboxConfig config = e.pod_config();
    config.mutable_linux()->set_cgroup_parent(e.lab().cgroup_parent() + "/burstable/pod-x");
    const Pod pod = e.run_pod(config);
    CHECK(e.output_of(pod, "cat /proc/self/cgroup").find("/burstable/pod-x/") != std::string::npos);
  });
}

}  // namespace kuasar::test
