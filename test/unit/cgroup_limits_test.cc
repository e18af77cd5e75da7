#include "os/cgroup_limits.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "oci/resources.h"
#include "os/cgroup.h"
#include "os/cgroup_freezer.h"
#include "os/cgroup_oom.h"
#include "os/packed_paths.h"
#include "os/systemd_unit.h"
#include "support/cgroup_tree.h"

// Cgroups as files: fake trees of v1, v2 and hybrid machines, and what would be written into them.

namespace kuasar::os {
namespace {

using Catch::Matchers::ContainsSubstring;
using test::FakeCgroups;

std::vector<ControlWrite> writes(const FakeCgroups& tree, const CgroupLimits& limits) {
  const CgroupControllers controllers = find_controllers(tree.dirs());
  const auto planned = plan_limits(controllers, read_cgroup_now(controllers), limits);
  INFO((planned ? std::string() : planned.error().message));
  REQUIRE(planned);
  std::vector<ControlWrite> out;
  for (const ControlWrite& write : *planned) {
    out.push_back({std::filesystem::path(write.file).filename(), write.value});
  }
  return out;
}

Error refusal(const FakeCgroups& tree, const CgroupLimits& limits) {
  const CgroupControllers controllers = find_controllers(tree.dirs());
  const auto planned = plan_limits(controllers, read_cgroup_now(controllers), limits);
  REQUIRE_FALSE(planned);
  return planned.error();
}

}  // namespace

TEST_CASE("cgroup: each controller is found where it is: v1, v2, hybrid") {
  const FakeCgroups v1 = FakeCgroups::v1();
  const CgroupControllers one = find_controllers(v1.dirs());
  CHECK(one.memory == ControllerDir{v1.dir("memory"), false});
  CHECK(one.cpu == ControllerDir{v1.dir("cpu"), false});
  CHECK(one.cpuacct == ControllerDir{v1.dir("cpuacct"), false});
  CHECK(one.freezer == ControllerDir{v1.dir("freezer"), false});
  CHECK_FALSE(one.hugetlb);

  const FakeCgroups v2 = FakeCgroups::v2();
  const CgroupControllers two = find_controllers(v2.dirs());
  for (const ControllerDir& place :
       {two.memory, two.cpu, two.cpuacct, two.cpuset, two.pids, two.io, two.freezer, two.hugetlb}) {
    CHECK(place == ControllerDir{v2.dir("unified"), true});
  }

  // Memory on v2, all else on v1, and the v2 directory could freeze and count CPU time, too.
  const FakeCgroups hybrid = FakeCgroups::hybrid();
  const CgroupControllers both = find_controllers(hybrid.dirs());
  CHECK(both.memory == ControllerDir{hybrid.dir("unified"), true});
  CHECK(both.cpu == ControllerDir{hybrid.dir("cpu"), false});
  CHECK(both.cpuacct == ControllerDir{hybrid.dir("cpuacct"), false});
  CHECK(both.freezer == ControllerDir{hybrid.dir("freezer"), false});
  CHECK(find_controllers({"/nowhere/at/all"}) == CgroupControllers());
}

TEST_CASE("cgroup: a directory's name says where to look first, its files what is there") {
  const FakeCgroups tree = FakeCgroups::v1();
  const std::string v1 = tree.dir("odd");
  const std::string v2 = v1 + "/memory";
  std::filesystem::create_directories(v2);
  REQUIRE(write_file(v1 + "/memory.usage_in_bytes", "0\n"));
  REQUIRE(write_file(v2 + "/memory.current", "0\n"));
  REQUIRE(write_file(v2 + "/cgroup.controllers", "memory\n"));
  const auto memory = [](const std::vector<std::string>& dirs) {
    return find_controller(dirs, &CgroupControllers::memory);
  };
  CHECK(memory({v2, v1}) == ControllerDir{v1, false});
  CHECK(memory({v2}) == ControllerDir{v2, true});
  CHECK(memory({v1, tree.dir("memory")}) == ControllerDir{tree.dir("memory"), false});
  CHECK(memory({tree.dir("memory") + "/no-such-cgroup", v1}) == ControllerDir{v1, false});
  CHECK_FALSE(memory({tree.dir("cpu")}));
}

TEST_CASE("cgroup limits: the same limits in the files of v1 and of v2") {
  CgroupLimits limits;
  limits.cpu_shares = 1024;
  limits.cpu_quota = 50'000;
  limits.cpu_period = 100'000;
  limits.cpuset_cpus = "0-1";
  limits.memory = 64 << 20;
  limits.memory_swap = 96 << 20;
  limits.memory_reservation = 32 << 20;
  limits.pids = 100;
  CHECK(writes(FakeCgroups::v1(), limits) ==
        std::vector<ControlWrite>{{"cpu.shares", "1024"},
                                  {"cpu.cfs_period_us", "100000"},
                                  {"cpu.cfs_quota_us", "50000"},
                                  {"cpuset.cpus", "0-1"},
                                  {"memory.limit_in_bytes", "67108864"},
                                  {"memory.memsw.limit_in_bytes", "100663296"},
                                  {"memory.soft_limit_in_bytes", "33554432"},
                                  {"pids.max", "100"}});
  limits.hugepages = {{"2MB", 4 << 20}};
  limits.unified = {{"memory.high", "50000000"}};
  CHECK(writes(FakeCgroups::v2(), limits) ==
        std::vector<ControlWrite>{{"cpu.weight", "39"},
                                  {"cpu.max", "50000 100000"},
                                  {"cpuset.cpus", "0-1"},
                                  {"memory.swap.max", "33554432"},
                                  {"memory.max", "67108864"},
                                  {"memory.low", "33554432"},
                                  {"pids.max", "100"},
                                  {"hugetlb.2MB.max", "4194304"},
                                  {"memory.high", "50000000"}});
  CHECK(writes(FakeCgroups::v1(), {}).empty());
}

TEST_CASE("cgroup limits: v1 memory never goes above memory and swap, also in between") {
  FakeCgroups tree = FakeCgroups::v1();
  tree.write("memory", "memory.limit_in_bytes", "104857600\n");
  CgroupLimits limits;
  SECTION("raised: the sum first") {
    limits.memory = 200 << 20;
    limits.memory_swap = 200 << 20;
    CHECK(writes(tree, limits) ==
          std::vector<ControlWrite>{{"memory.memsw.limit_in_bytes", "209715200"},
                                    {"memory.limit_in_bytes", "209715200"}});
  }
  SECTION("lowered: memory first") {
    limits.memory = 50 << 20;
    limits.memory_swap = 50 << 20;
    CHECK(writes(tree, limits) ==
          std::vector<ControlWrite>{{"memory.limit_in_bytes", "52428800"},
                                    {"memory.memsw.limit_in_bytes", "52428800"}});
  }
  SECTION("lifted: the sum goes with it, and first") {
    limits.memory = -1;
    CHECK(writes(tree, limits) == std::vector<ControlWrite>{{"memory.memsw.limit_in_bytes", "-1"},
                                                            {"memory.limit_in_bytes", "-1"}});
  }
  SECTION("less than memory alone") {
    limits.memory = 50 << 20;
    limits.memory_swap = 40 << 20;
    CHECK(refusal(tree, limits).code == Code::kInvalidArgument);
  }
}

TEST_CASE("cgroup limits: v1 CPU time goes over the smaller share") {
  FakeCgroups tree = FakeCgroups::v1();
  tree.write("cpu", "cpu.cfs_quota_us", "1000\n");
  tree.write("cpu", "cpu.cfs_period_us", "1000\n");
  CgroupLimits limits;
  limits.cpu_quota = 50'000;
  limits.cpu_period = 100'000;
  CHECK(writes(tree, limits) ==
        std::vector<ControlWrite>{{"cpu.cfs_period_us", "100000"}, {"cpu.cfs_quota_us", "50000"}});
  tree.write("cpu", "cpu.cfs_quota_us", "50000\n");
  tree.write("cpu", "cpu.cfs_period_us", "100000\n");
  limits.cpu_quota = 1000;
  limits.cpu_period = 1000;
  CHECK(writes(tree, limits) ==
        std::vector<ControlWrite>{{"cpu.cfs_quota_us", "1000"}, {"cpu.cfs_period_us", "1000"}});
  limits.cpu_period.reset();
  limits.cpu_quota = -1;
  CHECK(writes(tree, limits) == std::vector<ControlWrite>{{"cpu.cfs_quota_us", "-1"}});
}

TEST_CASE("cgroup limits: v2 keeps what is not given, and counts swap by itself") {
  FakeCgroups tree = FakeCgroups::v2();
  tree.write("unified", "cpu.max", "20000 100000\n");
  tree.write("unified", "memory.max", "104857600\n");
  CgroupLimits limits;
  limits.cpu_period = 50'000;
  limits.memory_swap = 100 << 20;
  CHECK(writes(tree, limits) ==
        std::vector<ControlWrite>{{"cpu.max", "20000 50000"}, {"memory.swap.max", "0"}});
  limits.cpu_quota = -1;
  limits.memory = -1;
  limits.memory_swap = -1;
  CHECK(writes(tree, limits) == std::vector<ControlWrite>{{"cpu.max", "max 50000"},
                                                          {"memory.swap.max", "max"},
                                                          {"memory.max", "max"}});
  tree.write("unified", "memory.max", "max\n");
  limits = {};
  limits.memory_swap = 1 << 20;
  CHECK(refusal(tree, limits).code == Code::kInvalidArgument);
  CHECK(weight_of_shares(0) == 1);
  CHECK(weight_of_shares(2) == 1);
  CHECK(weight_of_shares(262'144) == 10'000);
  CHECK(weight_of_shares(10'000'000) == 10'000);
}

TEST_CASE("cgroup limits: a limit without its controller is refused by name") {
  CgroupLimits limits;
  limits.hugepages = {{"2MB", 1}};
  CHECK_THAT(refusal(FakeCgroups::v1(), limits).message, ContainsSubstring("hugepageLimits"));
  limits = {};
  limits.unified = {{"memory.high", "1"}};
  CHECK_THAT(refusal(FakeCgroups::v1(), limits).message, ContainsSubstring("cgroup v2"));
  for (const char* file : {"../x/memory.max", "cgroup.kill", "nodot", ".hidden", "a/b.c"}) {
    limits.unified = {{file, "1"}};
    CHECK(refusal(FakeCgroups::v2(), limits).code == Code::kInvalidArgument);
  }
}

TEST_CASE("cgroup limits: a refused write puts back those before it") {
  const FakeCgroups tree = FakeCgroups::v1();
  const std::string shares = tree.dir("cpu") + "/cpu.shares";
  REQUIRE(write_file(shares, "512"));
  const Result<> applied =
      apply_limits({{shares, "1024"}, {tree.dir("cpu") + "/no.such.file", "1"}});
  REQUIRE_FALSE(applied);
  CHECK_THAT(applied.error().message, ContainsSubstring("no.such.file"));
  // A file, unlike a control file, keeps its old end.
  CHECK(read_control(shares).value().starts_with("512"));
}

TEST_CASE("cgroup resources: what containerd sends becomes limits") {
  const auto limits = oci::parse_resources(
      R"({"devices":[{"allow":false,"access":"rwm"}],"memory":{"limit":67108864,"swap":67108864},
          "cpu":{"shares":102,"quota":-1,"period":100000,"cpus":"0","mems":""},"pids":{"limit":0},
          "hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.high":"1"},
          "network":{"classID":1}})");
  REQUIRE(limits);
  CgroupLimits wanted;
  wanted.memory = 67108864;
  wanted.memory_swap = 67108864;
  wanted.cpu_shares = 102;
  wanted.cpu_quota = -1;
  wanted.cpu_period = 100000;
  wanted.cpuset_cpus = "0";
  wanted.hugepages = {{"2MB", 0}};
  wanted.unified = {{"memory.high", "1"}};
  CHECK(*limits == wanted);
  CHECK(oci::parse_resources("{}").value() == CgroupLimits());
}

TEST_CASE("cgroup resources: nonsense, and limits that cannot be changed, are refused by name") {
  const auto refused = [](const char* json) {
    const auto limits = oci::parse_resources(json);
    REQUIRE_FALSE(limits);
    return limits.error().message;
  };
  CHECK_THAT(refused("{"), ContainsSubstring("JSON"));
  CHECK_THAT(refused("[]"), ContainsSubstring("an object"));
  CHECK_THAT(refused(R"({"memory":{"limit":"1"}})"), ContainsSubstring("memory.limit"));
  CHECK_THAT(refused(R"({"memory":{"limit":1.5}})"), ContainsSubstring("whole number"));
  CHECK_THAT(refused(R"({"cpu":{"shares":-2}})"), ContainsSubstring("negative"));
  CHECK_THAT(refused(R"({"cpu":{"burst":5}})"), ContainsSubstring("cpu.burst"));
  CHECK_THAT(refused(R"({"blockIO":{"throttleReadBpsDevice":[{}]}})"),
             ContainsSubstring("throttleReadBpsDevice"));
  CHECK_THAT(refused(R"({"hugepageLimits":[{"pageSize":"../x","limit":1}]})"),
             ContainsSubstring("page size"));
}

TEST_CASE("cgroup: OOM kills of a container whose cgroup went first, by its pod's count on v2") {
  // The root stands for the pod's cgroup.
  FakeCgroups v2 = FakeCgroups::v2();
  const auto says = [&](const char* dir, int kills) {
    v2.write(dir, "cgroup.controllers", "memory\n");
    v2.write(dir, "memory.current", "0\n");
    v2.write(dir, "memory.events", fmt::format("oom 9\noom_kill {}\n", kills));
  };
  std::filesystem::create_directory(v2.dir("goes"));
  const std::vector<std::string> goes = {v2.dir("goes")};
  // What was there before, of a container that has been removed, is nobody's.
  says("", 4);
  says("unified", 0);
  says("goes", 0);
  OomLedger ledger;
  CHECK(ledger.kills("stays", v2.dirs()) == 0);
  CHECK(ledger.kills("goes", goes) == 0);
  // The sibling's kill is the sibling's, whoever is asked first.
  says("", 5);
  says("unified", 1);
  std::filesystem::remove_all(v2.dir("goes"));
  CHECK(ledger.kills("goes", goes) == 0);
  CHECK(ledger.kills("stays", v2.dirs()) == 1);
  // What nobody accounts for is of the one that is gone, once.
  says("", 7);
  CHECK(ledger.kills("goes", goes) == 2);
  CHECK(ledger.kills("goes", goes) == 2);
  CHECK(ledger.kills("stays", v2.dirs()) == 1);
  ledger.forget("goes");

  FakeCgroups v1 = FakeCgroups::v1();
  v1.write("memory", "memory.oom_control", "oom_kill 3\n");
  CHECK(ledger.kills("old", v1.dirs()) == 3);
  std::filesystem::remove_all(v1.dir("memory"));
  CHECK(ledger.kills("old", v1.dirs()) == 3);
}

TEST_CASE("packed paths: what goes in comes out, in less room") {
  const std::vector<std::vector<std::string>> lists = {
      {},
      {"/sys/fs/cgroup/kubepods/pod1/c1"},
      {"/sys/fs/cgroup/cpu/p/c", "/sys/fs/cgroup/memory/p/c", "/sys/fs/cgroup/pids/p/c"},
      {"aaa", "aa", "aaaa", "", "a", "b", "ba", "ab"},
      {"/x/y", "/x/y", "/y/x"},
  };
  for (const std::vector<std::string>& list : lists) {
    const PackedPaths packed(list);
    CHECK(packed.paths() == list);
    CHECK(packed.empty() == list.empty());
  }
}

TEST_CASE("cgroup: the freezer's word, and OOM kills, on v1 and v2") {
  FakeCgroups v1 = FakeCgroups::v1();
  CHECK_FALSE(is_frozen(v1.dirs()));
  v1.write("freezer", "freezer.self_freezing", "1\n");
  CHECK(is_frozen(v1.dirs()));
  CHECK_FALSE(oom_kills(v1.dirs()));
  v1.write("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
  CHECK(oom_kills(v1.dirs()) == 3);

  FakeCgroups v2 = FakeCgroups::v2();
  CHECK_FALSE(is_frozen(v2.dirs()));
  v2.write("unified", "cgroup.events", "populated 1\nfrozen 1\n");
  REQUIRE(freeze_cgroup(v2.dirs()));
  CHECK(is_frozen(v2.dirs()));
  REQUIRE(thaw_cgroup(v2.dirs()));
  CHECK_FALSE(is_frozen(v2.dirs()));
  v2.write("unified", "memory.events", "low 0\noom 9\noom_kill 2\noom_group_kill 0\n");
  CHECK(oom_kills(v2.dirs()) == 2);
  CHECK_FALSE(oom_kills({}));

  // One that never gets there is let go again.
  v2.write("unified", "cgroup.events", "populated 1\nfrozen 0\n");
  const Result<> late = freeze_cgroup(v2.dirs(), std::chrono::milliseconds(20));
  REQUIRE_FALSE(late);
  CHECK(late.error().code == Code::kDeadlineExceeded);
  CHECK_FALSE(is_frozen(v2.dirs()));
  CHECK(freeze_cgroup({}).error().code == Code::kFailedPrecondition);
}

TEST_CASE("systemd: the unit of a container, and slices by name") {
  CHECK(systemd_unit_of("kubepods-pod1.slice:cri-containerd:abc") == "cri-containerd-abc.scope");
  CHECK(systemd_unit_of("x.slice::abc") == "abc.scope");
  CHECK(systemd_unit_of("x.slice:p:a.slice") == "a.slice");
  CHECK(systemd_unit_of("/kubepods/pod1/abc").empty());
  CHECK(systemd_unit_of("").empty());
  CHECK(slice_of("kubepods-pod1.slice:cri-containerd:abc") == "kubepods-pod1.slice");
  CHECK(slice_of(":p:abc") == "system.slice");
  CHECK(cgroup_path_of("a-b.slice:p:c") == "/a.slice/a-b.slice/p-c.scope");
  CHECK(cgroup_path_of("/kubepods/pod1/abc") == "/kubepods/pod1/abc");
  CHECK(start_scope("/kubepods/pod1/abc", 1, {}).error().code == Code::kInvalidArgument);
  CHECK(expand_slice("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice");
  CHECK(expand_slice("a.slice") == "/a.slice");
  CHECK(expand_slice("/kubepods/pod1") == "/kubepods/pod1");
  CHECK(cgroups_at("/../etc").error().code == Code::kInvalidArgument);
}

TEST_CASE("systemd: what it is told of an update") {
  CgroupLimits limits;
  limits.cpu_shares = 1024;
  limits.cpu_quota = 33'333;
  limits.cpu_period = 100'000;
  limits.cpuset_cpus = "0-1,9";
  limits.memory = 64 << 20;
  limits.memory_swap = 96 << 20;
  limits.pids = -1;
  constexpr std::uint64_t kInfinity = std::numeric_limits<std::uint64_t>::max();
  CHECK(plan_unit_properties(limits, {}, true).value() ==
        std::vector<UnitProperty>{{"CPUWeight", std::uint64_t{39}},
                                  {"CPUQuotaPeriodUSec", std::uint64_t{100'000}},
                                  {"CPUQuotaPerSecUSec", std::uint64_t{340'000}},
                                  {"AllowedCPUs", std::vector<std::uint8_t>{0x03, 0x02}},
                                  {"MemoryMax", std::uint64_t{64 << 20}},
                                  {"MemorySwapMax", std::uint64_t{32 << 20}},
                                  {"TasksMax", kInfinity}});
  limits.cpu_quota = -1;
  CHECK(plan_unit_properties(limits, {}, false).value() ==
        std::vector<UnitProperty>{{"CPUShares", std::uint64_t{1024}},
                                  {"CPUQuotaPeriodUSec", std::uint64_t{100'000}},
                                  {"CPUQuotaPerSecUSec", kInfinity},
                                  {"MemoryLimit", std::uint64_t{64 << 20}},
                                  {"TasksMax", kInfinity}});
  limits = {};
  limits.cpuset_cpus = "3-1";
  CHECK(plan_unit_properties(limits, {}, true).error().code == Code::kInvalidArgument);
  CHECK(cpu_mask("99999999999").error().code == Code::kInvalidArgument);
  REQUIRE(set_unit_properties("x.scope", {}));
}

}  // namespace kuasar::os
