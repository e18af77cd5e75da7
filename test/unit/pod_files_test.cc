#include "sandbox/pod_files.h"

#include <catch2/catch_test_macros.hpp>
#include <filesystem>

#include "base/files.h"
#include "cri/runtime/v1/api.pb.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;

const HostFiles kHost{"node-1", "127.0.0.1 localhost\n", "nameserver 192.0.2.53\n"};

cri::NamespaceOption* namespaces(cri::PodSandboxConfig& config) {
  return config.mutable_linux()->mutable_security_context()->mutable_namespace_options();
}

std::string refused(const cri::PodSandboxConfig& config) {
  const Result<> result = check_supported(config);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Code::kUnimplemented);
  return result.error().message;
}

std::string refused_files(const cri::PodSandboxConfig& config) {
  const auto result = plan_pod_files(config, kHost);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Code::kInvalidArgument);
  return result.error().message;
}

}  // namespace

TEST_CASE("pod policy: what every pod may ask for") {
  cri::PodSandboxConfig config;
  CHECK(check_supported(config));
  namespaces(config)->set_network(cri::NODE);
  namespaces(config)->set_pid(cri::CONTAINER);
  CHECK(check_supported(config));
  namespaces(config)->mutable_userns_options()->set_mode(cri::NODE);
  config.mutable_linux()->mutable_security_context()->mutable_selinux_options();
  CHECK(check_supported(config));
}

TEST_CASE("T19 pod policy: SELinux labels are refused by the field's name") {
  for (int part = 0; part < 4; ++part) {
    cri::PodSandboxConfig config;
    auto* selinux = config.mutable_linux()->mutable_security_context()->mutable_selinux_options();
    if (part == 0) selinux->set_user("u");
    if (part == 1) selinux->set_role("r");
    if (part == 2) selinux->set_type("t");
    if (part == 3) selinux->set_level("s0:c1,c2");
    CHECK(refused(config) ==
          "linux.security_context.selinux_options: an SELinux label is not supported yet");
  }
}

TEST_CASE("pod policy: host and target namespaces are refused by the field's name") {
  const std::string prefix = "linux.security_context.namespace_options.";
  cri::PodSandboxConfig config;
  namespaces(config)->set_pid(cri::NODE);
  CHECK(refused(config) == prefix + "pid: NODE is not supported yet");
  namespaces(config)->set_pid(cri::TARGET);
  CHECK(refused(config) == prefix + "pid: TARGET is not supported yet");
  namespaces(config)->set_pid(static_cast<cri::NamespaceMode>(77));
  CHECK(refused(config) == prefix + "pid: mode 77 is not supported yet");
  namespaces(config)->set_pid(cri::POD);
  namespaces(config)->set_ipc(cri::NODE);
  CHECK(refused(config) == prefix + "ipc: NODE is not supported yet");
  namespaces(config)->set_ipc(cri::CONTAINER);
  CHECK(refused(config) == prefix + "ipc: CONTAINER is not supported yet");
  namespaces(config)->set_ipc(cri::POD);
  namespaces(config)->set_network(cri::CONTAINER);
  CHECK(refused(config) == prefix + "network: CONTAINER is not supported yet");
}

TEST_CASE("pod policy: user namespaces are refused by the field's name") {
  const std::string words =
      "linux.security_context.namespace_options.userns_options: a user namespace is not supported "
      "yet";
  cri::PodSandboxConfig config;
  namespaces(config)->mutable_userns_options()->set_mode(cri::POD);
  CHECK(refused(config) == words);
  namespaces(config)->mutable_userns_options()->set_mode(cri::NODE);
  namespaces(config)->mutable_userns_options()->add_uids()->set_length(1);
  CHECK(refused(config) == words);
}

TEST_CASE("pod files: the kubelet's DNS configuration line by line") {
  cri::PodSandboxConfig config;
  config.set_hostname("web-0");
  cri::DNSConfig* dns = config.mutable_dns_config();
  for (const char* s : {"ns.svc.cluster.local", "cluster.local"}) dns->add_searches(s);
  for (const char* s : {"10.96.0.10", "2001:db8::53"}) dns->add_servers(s);
  for (const char* s : {"ndots:5", "edns0"}) dns->add_options(s);
  const auto files = plan_pod_files(config, kHost);
  REQUIRE(files);
  CHECK(files->hostname == "web-0");
  CHECK(files->hostname_file == "web-0\n");
  CHECK(files->hosts_file == kHost.hosts);
  CHECK(files->resolv_conf_file ==
        "search ns.svc.cluster.local cluster.local\n"
        "nameserver 10.96.0.10\n"
        "nameserver 2001:db8::53\n"
        "options ndots:5 edns0\n");
}

TEST_CASE("pod files: an empty DNS configuration is not a missing one") {
  cri::PodSandboxConfig config;
  CHECK(plan_pod_files(config, kHost)->resolv_conf_file == kHost.resolv_conf);
  config.mutable_dns_config();
  CHECK(plan_pod_files(config, kHost)->resolv_conf_file.empty());
  config.mutable_dns_config()->add_servers("");
  CHECK(plan_pod_files(config, kHost)->resolv_conf_file.empty());
}

TEST_CASE("T32 pod files: the host network means the host's own name") {
  cri::PodSandboxConfig config;
  CHECK(plan_pod_files(config, kHost)->hostname == "node-1");
  config.set_hostname("web-0");
  CHECK(plan_pod_files(config, kHost)->hostname == "web-0");
  namespaces(config)->set_network(cri::NODE);
  CHECK(uses_host_network(config));
  CHECK(plan_pod_files(config, kHost)->hostname == "node-1");
  CHECK(plan_pod_files(config, kHost)->hostname_file == "node-1\n");
}

TEST_CASE("pod files: hostile names and DNS strings are refused by the field's name") {
  for (const std::string& hostname :
       {std::string("a\nb"), std::string("a b"), std::string("a/b"), std::string("a\0b", 3),
        std::string("\xc3\xa9"), std::string(65, 'a')}) {
    cri::PodSandboxConfig config;
    config.set_hostname(hostname);
    CHECK(refused_files(config).find("hostname ") == 0);
  }
  cri::PodSandboxConfig longest;
  longest.set_hostname(std::string(64, 'a'));
  CHECK(plan_pod_files(longest, kHost));
  for (const std::string& text : {std::string("1.1.1.1\nnameserver 6.6.6.6"), std::string("x\r"),
                                  std::string("\0", 1), std::string("a\tb"), std::string("\x7f")}) {
    cri::PodSandboxConfig servers;
    servers.mutable_dns_config()->add_servers(text);
    CHECK(refused_files(servers).find("dns_config.servers ") == 0);
    cri::PodSandboxConfig searches;
    searches.mutable_dns_config()->add_searches(text);
    CHECK(refused_files(searches).find("dns_config.searches ") == 0);
    cri::PodSandboxConfig options;
    options.mutable_dns_config()->add_options(text);
    CHECK(refused_files(options).find("dns_config.options ") == 0);
  }
}

TEST_CASE("pod files: the host's are read, the pod's are written for everybody to read") {
  const auto host = read_host_files();
  REQUIRE(host);
  CHECK_FALSE(host->hostname.empty());

  char name[] = "/tmp/kuasar-podfiles-XXXXXX";
  REQUIRE(::mkdtemp(name) != nullptr);
  const StatePaths paths{std::filesystem::path(name)};
  std::filesystem::create_directories(paths.files("a"));
  const auto files = plan_pod_files({}, kHost);
  REQUIRE(files);
  CHECK(write_pod_files(paths, "a", *files));
  CHECK(write_pod_files(paths, "a", *files));
  CHECK(*read_file(paths.hostname("a")) == "node-1\n");
  CHECK(*read_file(paths.hosts("a")) == kHost.hosts);
  CHECK(*read_file(paths.resolv_conf("a")) == kHost.resolv_conf);
  using std::filesystem::perms;
  CHECK(std::filesystem::status(paths.hosts("a")).permissions() == perms(0644));
  CHECK_FALSE(write_pod_files(paths, "ghost", *files));
  std::filesystem::remove_all(name);
}

TEST_CASE("pod mounts: compared whole") {
  const StatePaths paths{"/s"};
  const auto plan = plan_pod_mounts(paths, "a", {"/proc", "/dev", "/etc"}, false);
  const std::vector<InjectedMount> wanted{
      {"/etc/hostname", "/s/sandboxes/a/files/hostname", {"rbind", "rprivate", "rw"}},
      {"/etc/hosts", "/s/sandboxes/a/files/hosts", {"rbind", "rprivate", "rw"}},
      {"/etc/resolv.conf", "/s/sandboxes/a/files/resolv.conf", {"rbind", "rprivate", "rw"}},
      {"/dev/shm", "/s/sandboxes/a/shm", {"rbind", "rprivate", "rw"}},
  };
  CHECK(plan == wanted);
}

TEST_CASE("pod mounts: read-only rootfs, and destinations that the spec has already") {
  const StatePaths paths{"/s"};
  const auto plan = plan_pod_mounts(paths, "a", {"/etc//hosts/", "/dev/./shm"}, true);
  const std::vector<InjectedMount> wanted{
      {"/etc/hostname", "/s/sandboxes/a/files/hostname", {"rbind", "rprivate", "ro"}},
      {"/etc/resolv.conf", "/s/sandboxes/a/files/resolv.conf", {"rbind", "rprivate", "ro"}},
  };
  CHECK(plan == wanted);
}

}  // namespace kuasar::sandbox
