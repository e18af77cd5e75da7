#include "os/cgroup_limits.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace kuasar::os {
namespace {

using Writes = std::vector<ControlWrite>;

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kDefaultPeriod = 100'000;

Result<> need(const ControllerDir& place, std::string_view controller, std::string_view field) {
  if (place) return {};
  return fail(
      Code::kFailedPrecondition,
      "{}: the container has no {} cgroup of its own; enable that controller on this machine",
      field, controller);
}

std::string bytes_or_max(std::int64_t bytes) {
  return bytes < 0 ? "max" : std::to_string(bytes);
}

// Shares of the CPU's time that a quota allows; without one there is no bound.
double share_of(std::int64_t quota, std::uint64_t period) {
  if (quota <= 0) return std::numeric_limits<double>::infinity();
  return static_cast<double>(quota) / static_cast<double>(period);
}

Result<> plan_cpu_bandwidth(const ControllerDir& cpu, const CgroupNow& now,
                            const CgroupLimits& limits, Writes& out) {
  const std::int64_t old_quota = now.cpu_quota.value_or(-1);
  const std::uint64_t old_period = now.cpu_period.value_or(kDefaultPeriod);
  const std::int64_t quota = limits.cpu_quota.value_or(old_quota);
  const std::uint64_t period = limits.cpu_period.value_or(old_period);
  if (cpu.v2) {
    out.push_back({cpu.file("cpu.max"),
                   fmt::format("{} {}", quota <= 0 ? "max" : std::to_string(quota), period)});
    return {};
  }
  const ControlWrite write_quota{cpu.file("cpu.cfs_quota_us"),
                                 std::to_string(quota <= 0 ? -1 : quota)};
  const ControlWrite write_period{cpu.file("cpu.cfs_period_us"), std::to_string(period)};
  // The way over the smaller share: the parent has allowed the larger of both ends.
  const bool quota_first = share_of(quota, old_period) < share_of(old_quota, period);
  if (limits.cpu_quota && quota_first) out.push_back(write_quota);
  if (limits.cpu_period) out.push_back(write_period);
  if (limits.cpu_quota && !quota_first) out.push_back(write_quota);
  return {};
}

Result<> plan_cpu(const CgroupControllers& controllers, const CgroupNow& now,
                  const CgroupLimits& limits, Writes& out) {
  const ControllerDir& cpu = controllers.cpu;
  if (limits.cpu_shares) {
    CHECK_OK(need(cpu, "cpu", "cpu.shares"));
    const std::uint64_t shares = *limits.cpu_shares;
    out.push_back(
        cpu.v2 ? ControlWrite{cpu.file("cpu.weight"), std::to_string(weight_of_shares(shares))}
               : ControlWrite{cpu.file("cpu.shares"), std::to_string(shares)});
  }
  if (limits.cpu_quota || limits.cpu_period) {
    CHECK_OK(need(cpu, "cpu", "cpu.quota"));
    CHECK_OK(plan_cpu_bandwidth(cpu, now, limits, out));
  }
  for (const auto& [value, file] : {std::pair(&limits.cpuset_cpus, "cpuset.cpus"),
                                    std::pair(&limits.cpuset_mems, "cpuset.mems")}) {
    if (value->empty()) continue;
    CHECK_OK(need(controllers.cpuset, "cpuset", file));
    out.push_back({controllers.cpuset.file(file), *value});
  }
  return {};
}

Result<> plan_memory_v1(const ControllerDir& memory, const CgroupNow& now,
                        const CgroupLimits& limits, Writes& out) {
  std::optional<std::int64_t> swap = limits.memory_swap;
  // No limit of memory means none of both together.
  if (limits.memory && *limits.memory < 0 && !swap && now.swap_file) swap = -1;
  if (swap && !now.swap_file) {
    return fail(Code::kFailedPrecondition,
                "memory.swap: this kernel does not count swap; boot it with swapaccount=1");
  }
  const auto as_text = [](std::int64_t bytes) { return std::to_string(bytes < 0 ? -1 : bytes); };
  std::vector<ControlWrite> both;
  if (limits.memory) {
    both.push_back({memory.file("memory.limit_in_bytes"), as_text(*limits.memory)});
  }
  if (swap) {
    const ControlWrite write{memory.file("memory.memsw.limit_in_bytes"), as_text(*swap)};
    const bool raises = *swap < 0 || static_cast<std::uint64_t>(*swap) >= now.memory.value_or(0);
    both.insert(raises ? both.begin() : both.end(), write);
  }
  out.insert(out.end(), both.begin(), both.end());
  if (limits.memory_reservation) {
    out.push_back({memory.file("memory.soft_limit_in_bytes"), as_text(*limits.memory_reservation)});
  }
  return {};
}

Result<> plan_memory_v2(const ControllerDir& memory, const CgroupNow& now,
                        const CgroupLimits& limits, Writes& out) {
  if (limits.memory_swap) {
    const std::int64_t both = *limits.memory_swap;
    const std::uint64_t base = !limits.memory       ? now.memory.value_or(kUnlimited)
                               : *limits.memory < 0 ? kUnlimited
                                                    : static_cast<std::uint64_t>(*limits.memory);
    std::string swap = "max";
    if (both >= 0) {
      if (base == kUnlimited || static_cast<std::uint64_t>(both) < base) {
        return fail(
            Code::kInvalidArgument,
            "memory.swap: {} bytes for memory and swap together need a smaller memory.limit", both);
      }
      swap = std::to_string(static_cast<std::uint64_t>(both) - base);
    }
    out.push_back({memory.file("memory.swap.max"), swap});
  }
  if (limits.memory) out.push_back({memory.file("memory.max"), bytes_or_max(*limits.memory)});
  if (limits.memory_reservation) {
    out.push_back({memory.file("memory.low"), bytes_or_max(*limits.memory_reservation)});
  }
  return {};
}

Result<> plan_memory(const ControllerDir& memory, const CgroupNow& now, const CgroupLimits& limits,
                     Writes& out) {
  if (!limits.memory && !limits.memory_swap && !limits.memory_reservation) return {};
  CHECK_OK(need(memory, "memory", "memory"));
  if (limits.memory && limits.memory_swap && *limits.memory_swap >= 0 &&
      (*limits.memory < 0 || *limits.memory_swap < *limits.memory)) {
    return fail(Code::kInvalidArgument, "memory.swap {} is less than memory.limit {}",
                *limits.memory_swap, *limits.memory);
  }
  return memory.v2 ? plan_memory_v2(memory, now, limits, out)
                   : plan_memory_v1(memory, now, limits, out);
}

Result<> plan_rest(const CgroupControllers& controllers, const CgroupNow& now,
                   const CgroupLimits& limits, Writes& out) {
  if (limits.pids) {
    CHECK_OK(need(controllers.pids, "pids", "pids.limit"));
    out.push_back({controllers.pids.file("pids.max"), bytes_or_max(*limits.pids)});
  }
  if (limits.io_weight) {
    CHECK_OK(need(controllers.io, "blkio", "blockIO.weight"));
    if (now.io_weight_file.empty()) {
      return fail(Code::kFailedPrecondition,
                  "blockIO.weight: no I/O scheduler of this machine has weights; use bfq");
    }
    out.push_back({controllers.io.file(now.io_weight_file), std::to_string(*limits.io_weight)});
  }
  for (const CgroupLimits::Hugepages& page : limits.hugepages) {
    CHECK_OK(need(controllers.hugetlb, "hugetlb", "hugepageLimits"));
    const char* ending = controllers.hugetlb.v2 ? "max" : "limit_in_bytes";
    out.push_back({controllers.hugetlb.file(fmt::format("hugetlb.{}.{}", page.page_size, ending)),
                   std::to_string(page.bytes)});
  }
  for (const auto& [file, value] : limits.unified) {
    const bool ok = file.find('/') == file.npos && file.find('.') != file.npos &&
                    file.front() != '.' && !file.starts_with("cgroup.");
    if (!ok) {
      return fail(Code::kInvalidArgument, "unified: \"{}\" is no control file of a container",
                  file.substr(0, 100));
    }
    // Every controller of v2 lies in one directory.
    if (!controllers.cpuacct.v2) {
      return fail(Code::kFailedPrecondition, "unified: {} needs a machine with cgroup v2", file);
    }
    out.push_back({controllers.cpuacct.file(file), value});
  }
  return {};
}

}  // namespace

std::uint64_t weight_of_shares(std::uint64_t shares) {
  constexpr std::uint64_t kMin = 2;
  constexpr std::uint64_t kMax = 262'144;
  shares = std::clamp(shares, kMin, kMax);
  return 1 + ((shares - kMin) * 9'999) / (kMax - kMin);
}

CgroupNow read_cgroup_now(const CgroupControllers& controllers) {
  CgroupNow now;
  const ControllerDir& memory = controllers.memory;
  now.memory = read_control_number(memory.file(memory.v2 ? "memory.max" : "memory.limit_in_bytes"));
  now.swap_file = memory.v2 || read_control(memory.file("memory.memsw.limit_in_bytes")).has_value();
  const ControllerDir& cpu = controllers.cpu;
  if (cpu.v2) {
    std::istringstream in(read_control(cpu.file("cpu.max")).value_or(""));
    std::string quota;
    std::string period;
    in >> quota >> period;
    const std::optional<std::uint64_t> number = parse_control_number(quota);
    now.cpu_quota = number && *number != kUnlimited ? static_cast<std::int64_t>(*number) : -1;
    now.cpu_period = parse_control_number(period);
  } else {
    // "-1" is no number of ours: no limit.
    const std::optional<std::uint64_t> quota = read_control_number(cpu.file("cpu.cfs_quota_us"));
    now.cpu_quota = quota ? static_cast<std::int64_t>(*quota) : -1;
    now.cpu_period = read_control_number(cpu.file("cpu.cfs_period_us"));
  }
  const auto names = controllers.io.v2 ? std::pair("io.bfq.weight", "io.weight")
                                       : std::pair("blkio.bfq.weight", "blkio.weight");
  for (const char* name : {names.first, names.second}) {
    if (now.io_weight_file.empty() && read_control(controllers.io.file(name))) {
      now.io_weight_file = name;
    }
  }
  return now;
}

Result<std::vector<ControlWrite>> plan_limits(const CgroupControllers& controllers,
                                              const CgroupNow& now, const CgroupLimits& limits) {
  std::vector<ControlWrite> writes;
  CHECK_OK(plan_cpu(controllers, now, limits, writes));
  CHECK_OK(plan_memory(controllers.memory, now, limits, writes));
  CHECK_OK(plan_rest(controllers, now, limits, writes));
  return writes;
}

Result<> apply_limits(const std::vector<ControlWrite>& writes) {
  std::vector<ControlWrite> undo;
  for (const ControlWrite& write : writes) {
    Result<std::string> before = read_control(write.file);
    Result<> written = write_control(write.file, write.value);
    if (written) {
      if (before) undo.push_back({write.file, std::move(*before)});
      continue;
    }
    for (auto old = undo.rbegin(); old != undo.rend(); ++old) {
      if (Result<> back = write_control(old->file, old->value); !back) {
        log::warning({}, "undo of a refused update: {}", back.error().message);
      }
    }
    if (written.error().err == EBUSY) {
      return fail(std::move(written).error().context("more is in use than the new limit allows"));
    }
    return written;
  }
  return {};
}

Result<> write_limits(const std::vector<std::string>& dirs, const CgroupLimits& limits) {
  const CgroupControllers controllers = find_controllers(dirs);
  TRY(const std::vector<ControlWrite> writes,
      plan_limits(controllers, read_cgroup_now(controllers), limits));
  return apply_limits(writes);
}

}  // namespace kuasar::os
