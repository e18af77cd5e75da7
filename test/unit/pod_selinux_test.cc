#include "sandbox/pod_selinux.h"

#include <catch2/catch_test_macros.hpp>
#include <string>
#include <string_view>

#include "cri/runtime/v1/api.pb.h"
#include "os/selinux.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;

// As container-selinux installs it.
constexpr const char* kPolicy = R"(# comment
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
)";

cri::SELinuxOption* options(cri::PodSandboxConfig& config) {
  return config.mutable_linux()->mutable_security_context()->mutable_selinux_options();
}

SelinuxLabels labels(const cri::PodSandboxConfig& config, const std::string& id) {
  return plan_selinux_labels(config, parse_lxc_contexts(kPolicy).value(), id).value();
}

std::string refused(const cri::PodSandboxConfig& config) {
  const Result<> checked = check_selinux_options(config);
  REQUIRE_FALSE(checked);
  CHECK(checked.error().code == Code::kInvalidArgument);
  CHECK_FALSE(plan_selinux_labels(config, parse_lxc_contexts(kPolicy).value(), "a"));
  return checked.error().message;
}

}  // namespace

TEST_CASE("T19 selinux: a pod's label is the policy's with categories of its id") {
  const SelinuxLabels one = labels({}, "a");
  CHECK(one.process == "system_u:system_r:container_t:s0:c140,c462");
  CHECK(one.mount == "system_u:object_r:container_file_t:s0:c140,c462");
  CHECK(labels({}, "a") == one);
  CHECK_FALSE(labels({}, "b") == one);
  // Always two different categories, the lower one first.
  for (int i = 0; i < 2000; ++i) {
    const std::string label = labels({}, std::to_string(i)).process;
    const std::size_t at = label.rfind(":c") + 2;
    const int first = std::stoi(label.substr(at));
    const int second = std::stoi(label.substr(label.find(",c") + 2));
    CHECK(0 <= first);
    CHECK(first < second);
    CHECK(second < 1024);
  }
}

TEST_CASE("T19 selinux: what the pod asks for takes the place of the policy's") {
  cri::PodSandboxConfig config;
  options(config)->set_user("u_u");
  options(config)->set_role("r_r");
  options(config)->set_type("spc_t");
  options(config)->set_level("s0:c1,c2.c5");
  CHECK(labels(config, "a") == SelinuxLabels{"u_u:r_r:spc_t:s0:c1,c2.c5",
                                             "system_u:object_r:container_file_t:s0:c1,c2.c5"});
  config.Clear();
  options(config)->set_type("container_init_t");
  CHECK(labels(config, "a").process == "system_u:system_r:container_init_t:s0:c140,c462");
}

TEST_CASE("T19 selinux: options that are none are refused by the field's name") {
  CHECK(check_selinux_options({}));
  for (const char* level : {"s0", "s0-s1", "s0:c1", "s0:c0,c1023", "s1-s2:c1.c9,c11"}) {
    cri::PodSandboxConfig config;
    options(config)->set_level(level);
    CHECK(check_selinux_options(config));
  }
  for (const char* level : {"0", "s", "s0:", "s0:c", "s0:c1,", "s0:c1 c2", "s0:c1\"", "s0:c12345",
                            "s0,context=x", "SystemLow"}) {
    cri::PodSandboxConfig config;
    options(config)->set_level(level);
    CHECK(refused(config).find("linux.security_context.selinux_options.level") == 0);
  }
  for (const char* part : {"a:b", "a b", "a\"b", "a,b", "a\n"}) {
    cri::PodSandboxConfig config;
    options(config)->set_type(part);
    CHECK(refused(config).find("linux.security_context.selinux_options.type") == 0);
    config.Clear();
    options(config)->set_user(part);
    CHECK(refused(config).find("linux.security_context.selinux_options.user") == 0);
    config.Clear();
    options(config)->set_role(part);
    CHECK(refused(config).find("linux.security_context.selinux_options.role") == 0);
  }
}

TEST_CASE("T19 selinux: a policy that says nothing of containers") {
  CHECK_FALSE(parse_lxc_contexts(""));
  CHECK_FALSE(parse_lxc_contexts("process = \"a:b:c:s0\"\n"));
  CHECK_FALSE(parse_lxc_contexts("#process = \"a:b:c:s0\"\nfile = \"a:b:c:s0\"\n"));
  CHECK_FALSE(plan_selinux_labels({}, {"nonsense", "a:b:c:s0"}, "a"));
  CHECK_FALSE(plan_selinux_labels({}, {"a:b:c:s0", "a::c:s0"}, "a"));
}

TEST_CASE("T19 selinux: a kernel that has it, and no policy, is as one without") {
  using namespace std::string_view_literals;
  CHECK_FALSE(os::is_policys_context("kernel\0"sv));
  CHECK_FALSE(os::is_policys_context("kernel"));
  CHECK_FALSE(os::is_policys_context("kernel\n"));
  CHECK_FALSE(os::is_policys_context(""));
  CHECK(os::is_policys_context("system_u:system_r:kernel_t:s0\0"sv));
}

TEST_CASE("T19 selinux: this host's policy gives labels that the kernel knows") {
  if (!os::selinux_enabled()) {
    CHECK(selinux_labels({}, "a").value() == SelinuxLabels{});
    SKIP("there is no SELinux on this host");
  }
  const auto found = selinux_labels({}, "a");
  REQUIRE(found);
  CHECK(found->process.find(":s0:c") != std::string::npos);
}

}  // namespace kuasar::sandbox
