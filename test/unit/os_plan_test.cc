#include <sys/mount.h>

#include <catch2/catch_test_macros.hpp>
#include <string>
#include <vector>

#include "os/cgroup.h"
#include "os/idmap.h"
#include "os/mount.h"
#include "os/spawn.h"

namespace kuasar::os {
namespace {

TEST_CASE("mount plan: flags, data and propagation are told apart") {
  const auto overlay = plan_mount(
      {"overlay", "overlay", {"workdir=/w", "upperdir=/u", "lowerdir=/l", "index=off", "nodev"}});
  REQUIRE(overlay);
  CHECK(overlay->type == "overlay");
  CHECK(overlay->flags == MS_NODEV);
  CHECK(overlay->data == "workdir=/w,upperdir=/u,lowerdir=/l,index=off");
  CHECK_FALSE(overlay->bind_remount);

  const auto bind = plan_mount({"bind", "/src", {"rbind", "ro", "rslave"}});
  REQUIRE(bind);
  CHECK(bind->type.empty());
  CHECK(bind->flags == (MS_BIND | MS_REC | MS_RDONLY));
  CHECK(bind->propagation == (MS_SLAVE | MS_REC));
  CHECK(bind->bind_remount);
  CHECK(plan_mount({"bind", "/src", {"rbind", "rw"}})->flags == (MS_BIND | MS_REC));
}

TEST_CASE("mount plan: containerd's pseudo options") {
  CHECK(plan_mount({"overlay", "o", {"X-containerd.mkdir.path=/x", "lowerdir=/l"}})->data ==
        "lowerdir=/l");
  const auto refused = plan_mount({"overlay", "o", {"loop"}});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Code::kUnimplemented);
  CHECK(refused.error().message.find("loop") != std::string::npos);
}

TEST_CASE("T25 mount plan: id maps of a root file system") {
  const auto plan = plan_mount(
      {"overlay", "o", {"uidmap=0:100000:65536", "gidmap=0:200000:65536", "lowerdir=/a:/b"}});
  REQUIRE(plan);
  CHECK(plan->data == "lowerdir=/a:/b");
  CHECK(plan->uid_map == "0:100000:65536");
  CHECK(plan->gid_map == "0:200000:65536");
  for (const char* alone : {"uidmap=0:100000:65536", "gidmap=0:1:1"}) {
    CHECK(plan_mount({"overlay", "o", {alone}}).error().code == Code::kInvalidArgument);
  }
  CHECK(lower_dirs("index=off,lowerdir=/a:/b,upperdir=/u") == std::vector<std::string>{"/a", "/b"});
  CHECK(lower_dirs("upperdir=/u").empty());
  CHECK(with_lower_dirs("index=off,lowerdir=/a:/b,upperdir=/u", {"/x/0", "/x/1"}) ==
        "index=off,lowerdir=/x/0:/x/1,upperdir=/u");
  // Other maps than the pod's, or no user namespace at all.
  for (const IdMap& map : {IdMap{}, IdMap{"/pin", "0:100000:65536", "0:100000:65536"}}) {
    const auto mounted = mount_idmapped(*plan, "/nowhere", map, "/nowhere/lower");
    REQUIRE_FALSE(mounted);
    CHECK(mounted.error().message.find("0:200000:65536") != std::string::npos);
  }
}

TEST_CASE("overlay options are shortened by their common parent") {
  const auto shorter = shorten_overlay("lowerdir=/a/b/snap/1/fs:/a/b/snap/2/fs,upperdir=/u");
  REQUIRE(shorter);
  CHECK(shorter->directory == "/a/b/snap/");
  CHECK(shorter->data == "lowerdir=1/fs:2/fs,upperdir=/u");
  CHECK(shorten_overlay("lowerdir=/a/x:/b/y")->data == "lowerdir=a/x:b/y");
  CHECK_FALSE(shorten_overlay("upperdir=/u"));
  std::string many = "lowerdir=";
  for (int i = 0; i < 2000; ++i) many += (i == 0 ? "/s/" : ":/s/") + std::to_string(i);
  const auto too_many = shorten_overlay(many);
  REQUIRE_FALSE(too_many);
  CHECK(too_many.error().message.find("too many layers") != std::string::npos);
}

constexpr const char* kHybrid =
    "31 23 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    "32 23 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "33 23 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 23 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "35 23 0:31 / /tmp rw - tmpfs tmpfs rw\n";

TEST_CASE("cgroup: /proc/PID/cgroup and mountinfo are joined per hierarchy") {
  const auto hierarchies = parse_cgroup_mounts(kHybrid);
  REQUIRE(hierarchies.size() == 4);
  const auto dirs =
      join_cgroups(hierarchies, parse_proc_cgroup("4:memory:/pod/c1\n3:cpu,cpuacct:/pod/c1\n"
                                                  "1:name=systemd:/pod/c1\n0::/\n"));
  CHECK(dirs == std::vector<std::string>{"/sys/fs/cgroup/memory/pod/c1",
                                         "/sys/fs/cgroup/cpu,cpuacct/pod/c1",
                                         "/sys/fs/cgroup/systemd/pod/c1"});
  CHECK(join_cgroups(hierarchies, parse_proc_cgroup("0::/a:b/c\n")) ==
        std::vector<std::string>{"/sys/fs/cgroup/unified/a:b/c"});
  // Never a root, never a path that leads out.
  CHECK(join_cgroups(hierarchies, parse_proc_cgroup("4:memory:/\n0::/../x\n")).empty());
  CHECK(parse_proc_cgroup("nonsense\n\n1:x\n").empty());
}

TEST_CASE("cgroup: a hostile cgroup_parent is refused, systemd's slices are left to it") {
  CHECK(missing_cgroups("/a/../../etc").error().code == Code::kInvalidArgument);
  CHECK(missing_cgroups("/" + std::string(300, 'x')).error().code == Code::kInvalidArgument);
  CHECK(missing_cgroups("")->empty());
  CHECK(missing_cgroups("/kubepods.slice/kubepods-pod1.slice")->empty());
}

TEST_CASE("programs are found in PATH, never in the working directory") {
  CHECK(find_program("sh").value().ends_with("/sh"));
  CHECK(find_program("/bin/sh").value() == "/bin/sh");
  CHECK(find_program("no-such-program-here").error().code == Code::kNotFound);
  CHECK(find_program("").error().code == Code::kInvalidArgument);
  CHECK_FALSE(find_program("/etc/passwd"));
}

}  // namespace
}  // namespace kuasar::os
