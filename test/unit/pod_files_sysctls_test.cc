#include <catch2/catch_test_macros.hpp>
#include <map>

#include "cri/runtime/v1/api.pb.h"
#include "sandbox/pod_files.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;
using Settings = std::map<std::string, std::string>;

cri::PodSandboxConfig pod(const Settings& sysctls, bool host_network = false) {
  cri::PodSandboxConfig config;
  for (const auto& [name, value] : sysctls) {
    (*config.mutable_linux()->mutable_sysctls())[name] = value;
  }
  if (host_network) {
    config.mutable_linux()->mutable_security_context()->mutable_namespace_options()->set_network(
        cri::NODE);
  }
  return config;
}

Settings settings(const std::vector<os::Sysctl>& sysctls) {
  Settings out;
  for (const os::Sysctl& sysctl : sysctls) out[sysctl.path] = sysctl.value;
  return out;
}

SysctlPlan planned(const cri::PodSandboxConfig& config, bool defaults_on) {
  Result<SysctlPlan> plan = plan_sysctls(config, defaults_on);
  INFO((plan ? std::string() : plan.error().message));
  REQUIRE(plan);
  return *plan;
}

std::string refused(const std::string& name, const std::string& value = "1",
                    bool host_network = false) {
  Result<SysctlPlan> plan = plan_sysctls(pod({{name, value}}, host_network), true);
  INFO(name);
  REQUIRE_FALSE(plan);
  CHECK(plan.error().code == Code::kInvalidArgument);
  return plan.error().message;
}

}  // namespace

TEST_CASE("sysctls: each goes to the namespace it belongs to") {
  const SysctlPlan plan = planned(pod({{"net.core.somaxconn", "1024"},
                                       {"net/ipv4/tcp_rmem", "4096\t87380 6291456"},
                                       {"kernel.shm_rmid_forced", "1"},
                                       {"kernel.shmmax", "1"},
                                       {"kernel.msgmax", "65536"},
                                       {"kernel.sem", "250 32000 32 128"},
                                       {"fs.mqueue.msg_max", "100"},
                                       {"kernel.domainname", "example.org"}}),
                                  false);
  CHECK(settings(plan.net) == Settings{{"/proc/sys/net/core/somaxconn", "1024"},
                                       {"/proc/sys/net/ipv4/tcp_rmem", "4096\t87380 6291456"}});
  CHECK(settings(plan.ipc) == Settings{{"/proc/sys/kernel/shm_rmid_forced", "1"},
                                       {"/proc/sys/kernel/shmmax", "1"},
                                       {"/proc/sys/kernel/msgmax", "65536"},
                                       {"/proc/sys/kernel/sem", "250 32000 32 128"},
                                       {"/proc/sys/fs/mqueue/msg_max", "100"}});
  CHECK(settings(plan.uts) == Settings{{"/proc/sys/kernel/domainname", "example.org"}});
}

TEST_CASE("T31 sysctls: the defaults, and who does not get them") {
  const Settings both{{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
                      {"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"}};
  CHECK(settings(planned(pod({}), true).net) == both);
  CHECK(planned(pod({}), false).net.empty());
  CHECK(planned(pod({}, true), true).net.empty());
  cri::PodSandboxConfig userns;
  userns.mutable_linux()
      ->mutable_security_context()
      ->mutable_namespace_options()
      ->mutable_userns_options()
      ->set_mode(cri::POD);
  CHECK(settings(planned(userns, true).net) ==
        Settings{{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"}});
}

TEST_CASE("T31 sysctls: explicit values win over the defaults in either spelling") {
  for (const std::string name :
       {"net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start"}) {
    CHECK(settings(planned(pod({{name, "80"}}), true).net) ==
          Settings{{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "80"},
                   {"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"}});
  }
}

TEST_CASE("sysctls: the first separator decides, the other is part of an interface's name") {
  const Settings wanted{{"/proc/sys/net/ipv4/conf/eth0.7/rp_filter", "1"}};
  CHECK(settings(planned(pod({{"net.ipv4.conf.eth0/7.rp_filter", "1"}}), false).net) == wanted);
  CHECK(settings(planned(pod({{"net/ipv4/conf/eth0.7/rp_filter", "1"}}), false).net) == wanted);
}

TEST_CASE("sysctls: with the host network nothing of the host is changed") {
  CHECK(refused("net.core.somaxconn", "1", true) ==
        "linux.sysctls: net.core.somaxconn would change the host, whose network the pod uses");
  CHECK(refused("kernel.domainname", "x", true).find("kernel.domainname would") !=
        std::string::npos);
  CHECK(planned(pod({{"kernel.msgmax", "1"}}, true), true).ipc.size() == 1);
}

TEST_CASE("U11 sysctls: one without a value is passed over, as by containerd's own pods") {
  const SysctlPlan plan = planned(pod({{"net.core.somaxconn", ""}, {"kernel.sem", ""}}), false);
  CHECK(plan.net.empty());
  CHECK(plan.ipc.empty());
}

TEST_CASE("sysctls: what belongs to no namespace of the pod is refused by name") {
  for (const std::string name :
       {"vm.swappiness", "kernel.core_pattern", "kernel.modprobe", "fs.file-max", "network.x",
        "kernel.semantics", "kernel.shm_next_id", "kernel.shm/x.y", "fs.mqueue", "net", "kernel",
        "user.max_ipc"}) {
    CHECK(refused(name).find("linux.sysctls: " + name + " belongs to no namespace") == 0);
  }
  CHECK(refused("kernel.hostname").find("set by the field hostname") != std::string::npos);
}

TEST_CASE("sysctls: hostile names and values never become a path or a second line") {
  for (const std::string name :
       {"net/../kernel/core_pattern", "net/ipv4/../../vm/x", "net..core", "net.core.", ".net.core",
        "/net/core/x", "net//core", "net/./core", "../etc/passwd", "net.ipv4./.x"}) {
    CHECK(refused(name).find("malformed") != std::string::npos);
  }
  for (const std::string& name :
       {std::string(), std::string("net.core\n.x"), std::string("net.c\0re", 8),
        std::string("net.Core"), std::string("net.core somaxconn"), std::string(256, 'a')}) {
    CHECK(refused(name).find("malformed") != std::string::npos);
  }
  for (const std::string& value :
       {std::string("1\n2"), std::string("\0", 1), std::string(4096, '1')}) {
    CHECK(refused("net.core.somaxconn", value).find("the value of net.core.somaxconn must be") !=
          std::string::npos);
  }
  const auto twice = plan_sysctls(pod({{"net.core.x", "1"}, {"net/core/x", "2"}}), true);
  REQUIRE_FALSE(twice);
  CHECK(twice.error().message.find("is given twice") != std::string::npos);
}

}  // namespace kuasar::sandbox
