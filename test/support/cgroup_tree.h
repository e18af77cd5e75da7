#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/files.h"

namespace kuasar::test {

/// A FAKE of a container's cgroup directories: ordinary files with the kernel's names below a
/// temporary directory, removed with the object.
class FakeCgroups {
 public:
  static FakeCgroups v1() {
    FakeCgroups tree;
    for (const char* hierarchy :
         {"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer"}) {
      tree.make_v1(hierarchy);
    }
    return tree;
  }
  static FakeCgroups v2() {
    FakeCgroups tree;
    tree.make_v2({"cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems", "memory.current",
                  "memory.max", "pids.current", "pids.max", "io.stat", "hugetlb.2MB.max"});
    return tree;
  }
  /// Memory has moved to v2.
  static FakeCgroups hybrid() {
    FakeCgroups tree;
    for (const char* hierarchy : {"cpu", "cpuacct", "pids", "freezer"}) tree.make_v1(hierarchy);
    tree.make_v2({"memory.current", "memory.max"});
    return tree;
  }

  FakeCgroups(FakeCgroups&& other) noexcept
      : root_(std::move(other.root_)), dirs_(std::move(other.dirs_)) {
    other.root_.clear();
  }
  FakeCgroups& operator=(FakeCgroups&&) = delete;
  ~FakeCgroups() {
    if (!root_.empty()) std::filesystem::remove_all(root_);
  }

  const std::vector<std::string>& dirs() const { return dirs_; }
  std::string dir(const std::string& hierarchy) const { return root_ + "/" + hierarchy; }
  void write(const std::string& hierarchy, const std::string& file, const std::string& text) {
    if (!write_file(dir(hierarchy) + "/" + file, text)) std::abort();
  }

 private:
  FakeCgroups() {
    char name[] = "/tmp/kuasar-cgroups-XXXXXX";
    root_ = ::mkdtemp(name);
  }
  void make(const std::string& hierarchy) {
    std::filesystem::create_directory(dir(hierarchy));
    dirs_.push_back(dir(hierarchy));
  }
  void make_v1(const std::string& hierarchy) {
    make(hierarchy);
    const auto add = [&](std::vector<const char*> files) {
      for (const char* file : files) write(hierarchy, file, "0\n");
    };
    if (hierarchy == "cpu") add({"cpu.shares", "cpu.cfs_period_us", "cpu.stat"});
    if (hierarchy == "cpu") write(hierarchy, "cpu.cfs_quota_us", "-1\n");
    if (hierarchy == "cpuacct") add({"cpuacct.usage", "cpuacct.stat"});
    if (hierarchy == "cpuset") add({"cpuset.cpus", "cpuset.mems"});
    if (hierarchy == "pids") add({"pids.current", "pids.max"});
    if (hierarchy == "blkio") add({"blkio.throttle.io_service_bytes"});
    if (hierarchy == "freezer") add({"freezer.self_freezing"});
    if (hierarchy == "freezer") write(hierarchy, "freezer.state", "THAWED\n");
    if (hierarchy == "memory") {
      add({"memory.usage_in_bytes", "memory.oom_control"});
      // No limit is a number to v1.
      write(hierarchy, "memory.limit_in_bytes", "9223372036854771712\n");
      write(hierarchy, "memory.memsw.limit_in_bytes", "9223372036854771712\n");
    }
  }
  void make_v2(const std::vector<const char*>& controller_files) {
    make("unified");
    for (const char* file : {"cgroup.controllers", "cgroup.events", "cpu.stat"}) {
      write("unified", file, "");
    }
    write("unified", "cgroup.freeze", "0");
    for (const char* file : controller_files) write("unified", file, "max\n");
  }

  std::string root_;
  std::vector<std::string> dirs_;
};

}  // namespace kuasar::test
