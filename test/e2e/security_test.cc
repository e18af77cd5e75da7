#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>

#include "e2e/table.h"
#include "support/process.h"

// What containerd writes into the spec for a security context holds inside of the container, as it
// does with containerd's own shim.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;

// Numbers of capabilities (linux/capability.h).
constexpr int kChown = 0;
constexpr int kNetAdmin = 12;
constexpr int kSysAdmin = 21;

cri::LinuxContainerSecurityContext* security(cri::ContainerConfig& config) {
  return config.mutable_linux()->mutable_security_context();
}

// The "Name:\tvalue" lines of a proc file, as a script prints it.
std::map<std::string, std::string> status_of(Case& e, const Pod& pod, cri::ContainerConfig config) {
  config.clear_command();
  for (const char* word : {"cat", "/proc/self/status"}) config.add_command(word);
  std::map<std::string, std::string> result;
  for (const std::string& line : lines_of(e.run(pod, config).log.out)) {
    const std::size_t colon = line.find(":\t");
    if (colon != std::string::npos) result[line.substr(0, colon)] = line.substr(colon + 2);
  }
  REQUIRE(result.contains("CapEff"));
  return result;
}

bool has(const std::string& hex, int capability) {
  return (std::stoull(hex, nullptr, 16) >> capability & 1) != 0;
}

}  // namespace

TEST_CASE("security: capabilities are added and dropped", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    auto status = status_of(e, pod, e.container_config({}));
    CHECK(has(status["CapEff"], kChown));
    CHECK_FALSE(has(status["CapEff"], kNetAdmin));

    cri::ContainerConfig changed = e.container_config({});
    security(changed)->mutable_capabilities()->add_add_capabilities("NET_ADMIN");
    security(changed)->mutable_capabilities()->add_drop_capabilities("CHOWN");
    status = status_of(e, pod, changed);
    for (const char* set : {"CapEff", "CapPrm", "CapBnd"}) {
      CAPTURE(set);
      CHECK(has(status[set], kNetAdmin));
      CHECK_FALSE(has(status[set], kChown));
    }

    cri::ContainerConfig bare = e.container_config({});
    security(bare)->mutable_capabilities()->add_drop_capabilities("ALL");
    status = status_of(e, pod, bare);
    CHECK(status["CapEff"] == "0000000000000000");
    CHECK(status["CapBnd"] == "0000000000000000");
  });
}

TEST_CASE("security: no_new_privs is set where it is asked for", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    for (const bool asked : {true, false}) {
      CAPTURE(asked);
      cri::ContainerConfig config = e.container_config({});
      security(config)->set_no_new_privs(asked);
      CHECK(status_of(e, pod, config)["NoNewPrivs"] == (asked ? "1" : "0"));
    }
  });
}

TEST_CASE("security: user and groups are the container's", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config({});
    security(config)->mutable_run_as_user()->set_value(1234);
    security(config)->mutable_run_as_group()->set_value(2345);
    security(config)->add_supplemental_groups(3456);
    auto status = status_of(e, pod, config);
    CHECK(status["Uid"] == "1234\t1234\t1234\t1234");
    CHECK(status["Gid"] == "2345\t2345\t2345\t2345");
    CHECK_THAT(status["Groups"], ContainsSubstring("3456"));
    CHECK(status["CapEff"] == "0000000000000000");
  });
}

TEST_CASE("security: masked paths show nothing, read-only paths refuse writes", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c",
         "wc -c </proc/version; ls /proc/irq | wc -l; (echo x >/tmp/new) 2>&1; cat /tmp/old 2>&1;"
         "echo x >/var/new && echo /var is writable"});
    security(config)->add_masked_paths("/proc/version");
    security(config)->add_masked_paths("/proc/irq");
    security(config)->add_masked_paths("/no/such/path");
    security(config)->add_readonly_paths("/tmp");
    const std::string out = e.run(pod, config).log.out;
    const std::vector<std::string> lines = lines_of(out);
    INFO(out);
    REQUIRE(lines.size() >= 4);
    CHECK(trimmed(lines[0]) == "0");
    CHECK(trimmed(lines[1]) == "0");
    CHECK_THAT(lines[2], ContainsSubstring("Read-only file system"));
    CHECK_THAT(out, ContainsSubstring("/var is writable"));
  });
}

TEST_CASE("security: seccomp filters are on, off, and the localhost profile's", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config({});
    security(config)->mutable_seccomp()->set_profile_type(cri::SecurityProfile::RuntimeDefault);
    CHECK(status_of(e, pod, config)["Seccomp"] == "2");
    security(config)->mutable_seccomp()->set_profile_type(cri::SecurityProfile::Unconfined);
    config.mutable_metadata()->set_name("unconfined");
    CHECK(status_of(e, pod, config)["Seccomp"] == "0");

    const fs::path profile = e.scratch() / "no-hostname.json";
    write_text(profile, R"({"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],)"
                        R"("action":"SCMP_ACT_ERRNO","errnoRet":95}]})");
    cri::ContainerConfig local = e.container_config({"sh", "-c", "hostname changed 2>&1; echo $?"});
    security(local)->mutable_capabilities()->add_add_capabilities("SYS_ADMIN");
    security(local)->mutable_seccomp()->set_profile_type(cri::SecurityProfile::Localhost);
    security(local)->mutable_seccomp()->set_localhost_ref(profile);
    const std::string out = e.run(pod, local).log.out;
    CHECK_THAT(out, ContainsSubstring("not supported"));
    CHECK(lines_of(out).back() == "1");
  });
}

TEST_CASE("security: a privileged container has every right and the host's devices",
          "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig pod_config = e.pod_config();
    pod_config.mutable_linux()->mutable_security_context()->set_privileged(true);
    const Pod pod = e.run_pod(pod_config);
    cri::ContainerConfig config = e.container_config({});
    security(config)->set_privileged(true);
    auto status = status_of(e, pod, config);
    // All that the daemons themselves have.
    std::map<std::string, std::string> ours;
    for (const std::string& line : lines_of(read_text("/proc/self/status"))) {
      const std::size_t colon = line.find(":\t");
      if (colon != std::string::npos) ours[line.substr(0, colon)] = line.substr(colon + 2);
    }
    CHECK(status["CapEff"] == ours["CapEff"]);
    CHECK(has(status["CapEff"], kSysAdmin));
    CHECK(status["Seccomp"] == ours["Seccomp"]);

    cri::ContainerConfig acts = e.container_config(
        {"sh", "-c",
         "mkdir /m && mount -t tmpfs none /m && echo mounted; echo 1 "
         ">/proc/sys/net/ipv4/ip_forward && "
         "echo written; head -c 0 /dev/loop-control && echo opened; ls /dev/pts /dev/null"});
    acts.mutable_metadata()->set_name("acts");
    security(acts)->set_privileged(true);
    const std::string out = e.run(pod, acts).log.out;
    INFO(out);
    CHECK_THAT(out, ContainsSubstring("mounted"));
    CHECK_THAT(out, ContainsSubstring("written"));
    if (fs::exists("/dev/loop-control")) CHECK_THAT(out, ContainsSubstring("opened"));

    // Beside it, one without the rights.
    const std::string plain =
        e.run(pod,
              e.container_config({"sh", "-c", "mkdir /m && (mount -t tmpfs none /m || echo no)"}))
            .log.out;
    CHECK(plain == "no\n");
  });
}

TEST_CASE("security: a device is there with its permissions, and no other is", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config =
        e.container_config({"sh", "-c",
                            "stat -c '%t %T' /dev/given; head -c 4 /dev/given | wc -c;"
                            "(echo x >/dev/given) 2>&1; echo write $?; mknod /tmp/kmsg c 1 11 && "
                            "head -c 1 /tmp/kmsg 2>&1; echo kmsg $?"});
    cri::Device* device = config.add_devices();
    device->set_host_path("/dev/zero");
    device->set_container_path("/dev/given");
    device->set_permissions("r");
    const std::string out = e.run(pod, config).log.out;
    const std::vector<std::string> lines = lines_of(out);
    INFO(out);
    REQUIRE(lines.size() >= 4);
    struct stat zero {};
    REQUIRE(::stat("/dev/zero", &zero) == 0);
    CHECK(lines[0] == fmt::format("{:x} {:x}", major(zero.st_rdev), minor(zero.st_rdev)));
    CHECK(trimmed(lines[1]) == "4");
    CHECK_THAT(out, ContainsSubstring("kmsg 1"));
  });
}

TEST_CASE("security: resource limits of processes are those that our daemons were started with",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const auto limits = [](const std::string& text) {
      std::map<std::string, std::string> all;
      for (const std::string& line : lines_of(text)) {
        // "Max open files            1024                 4096                 files"
        if (line.size() > 26) all[trimmed(line.substr(0, 26))] = trimmed(line.substr(26));
      }
      return all;
    };
    auto inside = limits(e.run(pod, e.container_config({"cat", "/proc/self/limits"})).log.out);
    auto outside = limits(read_text("/proc/self/limits"));
    REQUIRE(inside.size() > 10);
    for (const char* name : {"Max open files", "Max processes", "Max stack size",
                             "Max core file size", "Max locked memory"}) {
      CAPTURE(name);
      CHECK(inside[name] == outside[name]);
    }
  });
}

}  // namespace kuasar::test
