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
  for (const auto pid : {cri::CONTAINER, cri::NODE}) {
    namespaces(config)->set_pid(pid);
    CHECK(check_supported(config));
  }
  namespaces(config)->set_ipc(cri::NODE);
  CHECK(check_supported(config));
  CHECK(uses_host_ipc(config));
  CHECK(uses_host_pid(config));
  namespaces(config)->mutable_userns_options()->set_mode(cri::NODE);
  config.mutable_linux()->mutable_security_context()->mutable_selinux_options();
  CHECK(check_supported(config));
}

TEST_CASE("pod policy: modes that a pod cannot have are refused by the field's name") {
  const std::string prefix = "linux.security_context.namespace_options.";
  cri::PodSandboxConfig config;
  namespaces(config)->set_pid(cri::TARGET);
  CHECK(refused(config) == prefix + "pid: TARGET is not supported");
  namespaces(config)->set_pid(static_cast<cri::NamespaceMode>(77));
  CHECK(refused(config) == prefix + "pid: mode 77 is not supported");
  namespaces(config)->set_pid(cri::POD);
  for (const auto mode : {cri::CONTAINER, cri::TARGET}) {
    namespaces(config)->set_ipc(mode);
    CHECK(refused(config) ==
          prefix + "ipc: " + cri::NamespaceMode_Name(mode) + " is not supported");
  }
  namespaces(config)->set_ipc(cri::POD);
  namespaces(config)->set_network(cri::CONTAINER);
  CHECK(refused(config) == prefix + "network: CONTAINER is not supported");
}

TEST_CASE("T25 pod policy: user namespaces are checked here, nobody above does it") {
  const auto asked = [](cri::NamespaceMode mode, int uids, int gids) {
    cri::PodSandboxConfig config;
    auto* options = namespaces(config)->mutable_userns_options();
    options->set_mode(mode);
    for (int i = 0; i < uids + gids; ++i) {
      auto* mapping = i < uids ? options->add_uids() : options->add_gids();
      mapping->set_host_id(i < uids ? 100000 : 200000);
      mapping->set_length(65536);
    }
    return config;
  };
  const auto words = [](const cri::PodSandboxConfig& config) {
    const auto found = user_namespace(config);
    REQUIRE_FALSE(found);
    CHECK(found.error().code == Code::kInvalidArgument);
    CHECK(found.error().message.find("linux.security_context.namespace_options.userns_options") ==
          0);
    return found.error().message;
  };
  CHECK(user_namespace({})->has_value() == false);
  CHECK(user_namespace(asked(cri::NODE, 0, 0))->has_value() == false);
  const auto served = user_namespace(asked(cri::POD, 1, 1));
  REQUIRE(served);
  CHECK(*served == PodUserNamespace{{100000, 65536}, {200000, 65536}});
  CHECK((*served)->root() == PodRoot{100000, 200000});
  CHECK((*served)->uids.option() == "0:100000:65536");
  CHECK((*served)->gids.line() == "0 200000 65536\n");

  CHECK(words(asked(cri::CONTAINER, 1, 1)).find("CONTAINER") != std::string::npos);
  CHECK(words(asked(cri::TARGET, 1, 1)).find("TARGET") != std::string::npos);
  words(asked(static_cast<cri::NamespaceMode>(77), 1, 1));
  words(asked(cri::NODE, 1, 0));
  words(asked(cri::NODE, 0, 1));
  words(asked(cri::POD, 0, 1));
  CHECK(words(asked(cri::POD, 2, 1)).find("there are 2") != std::string::npos);
  words(asked(cri::POD, 1, 2));
  cri::PodSandboxConfig config = asked(cri::POD, 1, 1);
  auto* uids = namespaces(config)->mutable_userns_options()->mutable_uids(0);
  uids->set_container_id(1);
  CHECK(words(config).find("container_id 0") != std::string::npos);
  uids->set_container_id(0);
  uids->set_length(0);
  words(config);
  uids->set_host_id(4294967295U);
  uids->set_length(1);
  words(config);
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
  // P4: the kubelet sets none then; two names would contradict each other.
  CHECK(refused_files(config).find("without a private UTS namespace") != std::string::npos);
  config.clear_hostname();
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
  CHECK(write_pod_files(paths, "a", *files, {}, {}));
  CHECK(write_pod_files(paths, "a", *files, {}, {}));
  CHECK(*read_file(paths.hostname("a")) == "node-1\n");
  CHECK(*read_file(paths.hosts("a")) == kHost.hosts);
  CHECK(*read_file(paths.resolv_conf("a")) == kHost.resolv_conf);
  using std::filesystem::perms;
  CHECK(std::filesystem::status(paths.hosts("a")).permissions() == perms(0644));
  CHECK_FALSE(write_pod_files(paths, "ghost", *files, {}, {}));
  std::filesystem::remove_all(name);
}

TEST_CASE("pod mounts: compared whole") {
  const StatePaths paths{"/s"};
  const auto plan = plan_pod_mounts(paths, "a", {"/proc", "/dev", "/etc"}, false, true);
  const std::vector<InjectedMount> wanted{
      {"/etc/hostname",
       "/s/sandboxes/a/files/hostname",
       {"rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"}},
      {"/etc/hosts",
       "/s/sandboxes/a/files/hosts",
       {"rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"}},
      {"/etc/resolv.conf",
       "/s/sandboxes/a/files/resolv.conf",
       {"rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"}},
      {"/dev/shm", "/s/sandboxes/a/shm", {"rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"}},
  };
  CHECK(plan == wanted);
}

TEST_CASE("pod mounts: read-only rootfs, and destinations that the spec has already") {
  const StatePaths paths{"/s"};
  const auto plan = plan_pod_mounts(paths, "a", {"/etc//hosts/", "/dev/./shm"}, true, true);
  const std::vector<InjectedMount> wanted{
      {"/etc/hostname",
       "/s/sandboxes/a/files/hostname",
       {"rbind", "rprivate", "nosuid", "nodev", "noexec", "ro"}},
      {"/etc/resolv.conf",
       "/s/sandboxes/a/files/resolv.conf",
       {"rbind", "rprivate", "nosuid", "nodev", "noexec", "ro"}},
  };
  CHECK(plan == wanted);
  // With the host's IPC namespace /dev/shm stays as it was sent.
  for (const InjectedMount& mount : plan_pod_mounts(paths, "a", {}, false, false)) {
    CHECK(mount.destination != "/dev/shm");
  }
}

}  // namespace kuasar::sandbox
