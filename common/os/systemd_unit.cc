#include "os/systemd_unit.h"

#include <systemd/sd-bus.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

#include "os/cgroup.h"

namespace kuasar::os {
namespace {

constexpr std::uint64_t kInfinity = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kBusTimeoutUsec = 5'000'000;
constexpr unsigned kMaxCpu = 8191;

std::uint64_t or_infinity(std::int64_t value) {
  return value < 0 ? kInfinity : static_cast<std::uint64_t>(value);
}

// systemd counts in steps of 10 ms per second, rounding up, as runc does: a container must not get
// less than it had.
std::uint64_t quota_per_second(std::int64_t quota, std::uint64_t period) {
  constexpr std::uint64_t kStep = 10'000;
  if (quota <= 0) return kInfinity;
  const std::uint64_t exact = static_cast<std::uint64_t>(quota) * 1'000'000 / period;
  return (exact + kStep - 1) / kStep * kStep;
}

struct BusCloser {
  void operator()(sd_bus* bus) const { sd_bus_flush_close_unref(bus); }
};
struct MessageCloser {
  void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};
using Bus = std::unique_ptr<sd_bus, BusCloser>;
using Message = std::unique_ptr<sd_bus_message, MessageCloser>;

// The content of a variant.
int append_value(sd_bus_message* message, std::uint64_t value) {
  return sd_bus_message_append(message, "v", "t", value);
}
int append_value(sd_bus_message* message, bool value) {
  return sd_bus_message_append(message, "v", "b", value ? 1 : 0);
}
int append_value(sd_bus_message* message, const std::string& value) {
  return sd_bus_message_append(message, "v", "s", value.c_str());
}
template <typename T>
int append_array(sd_bus_message* message, const char* signature, char type,
                 const std::vector<T>& values) {
  int r = sd_bus_message_open_container(message, 'v', signature);
  if (r >= 0)
    r = sd_bus_message_append_array(message, type, values.data(), values.size() * sizeof(T));
  return r >= 0 ? sd_bus_message_close_container(message) : r;
}
int append_value(sd_bus_message* message, const std::vector<std::uint8_t>& value) {
  return append_array(message, "ay", 'y', value);
}
int append_value(sd_bus_message* message, const std::vector<std::uint32_t>& value) {
  return append_array(message, "au", 'u', value);
}

int append(sd_bus_message* message, const std::vector<UnitProperty>& properties) {
  int r = sd_bus_message_open_container(message, 'a', "(sv)");
  for (const UnitProperty& property : properties) {
    if (r >= 0) r = sd_bus_message_open_container(message, 'r', "sv");
    if (r >= 0) r = sd_bus_message_append(message, "s", property.name.c_str());
    if (r >= 0) {
      r = std::visit([&](const auto& value) { return append_value(message, value); },
                     property.value);
    }
    if (r >= 0) r = sd_bus_message_close_container(message);
  }
  return r >= 0 ? sd_bus_message_close_container(message) : r;
}

constexpr const char* kService = "org.freedesktop.systemd1";
constexpr const char* kObject = "/org/freedesktop/systemd1";
constexpr const char* kManager = "org.freedesktop.systemd1.Manager";

Result<Bus> open_bus(const std::string& unit) {
  sd_bus* raw = nullptr;
  const int opened = sd_bus_open_system(&raw);
  if (opened >= 0) return Bus(raw);
  return fail(Code::kFailedPrecondition,
              "no D-Bus connection to systemd ({}), and the container's cgroup is systemd's unit "
              "{}",
              Error::from_errno_value(-opened, "open the system bus").message, unit);
}

Result<Message> make_call(sd_bus* bus, const char* method) {
  sd_bus_message* raw = nullptr;
  const int r = sd_bus_message_new_method_call(bus, &raw, kService, kObject, kManager, method);
  if (r < 0) return fail(Error::from_errno_value(-r, "build a call of", method));
  return Message(raw);
}

Result<> call(sd_bus* bus, const Message& message, const char* method, const std::string& unit) {
  sd_bus_error error = SD_BUS_ERROR_NULL;
  const int called = sd_bus_call(bus, message.get(), kBusTimeoutUsec, &error, nullptr);
  if (called >= 0) return {};
  Error refused = Error::from_errno_value(-called, method, unit);
  if (error.message != nullptr) refused.message += fmt::format(" ({})", error.message);
  sd_bus_error_free(&error);
  return fail(std::move(refused));
}

Result<Message> set_properties_call(sd_bus* bus, const std::string& unit,
                                    const std::vector<UnitProperty>& properties) {
  TRY(Message message, make_call(bus, "SetUnitProperties"));
  int r = sd_bus_message_append(message.get(), "sb", unit.c_str(), 1);
  if (r >= 0) r = append(message.get(), properties);
  if (r < 0) return fail(Error::from_errno_value(-r, "build the properties of", unit));
  return message;
}

Result<Message> start_call(sd_bus* bus, const std::string& unit,
                           const std::vector<UnitProperty>& properties) {
  TRY(Message message, make_call(bus, "StartTransientUnit"));
  int r = sd_bus_message_append(message.get(), "ss", unit.c_str(), "replace");
  if (r >= 0) r = append(message.get(), properties);
  if (r >= 0) r = sd_bus_message_append(message.get(), "a(sa(sv))", 0);
  if (r < 0) return fail(Error::from_errno_value(-r, "build the properties of", unit));
  return message;
}

// How the job of a unit ended, once it has.
struct JobEnd {
  std::string unit;
  std::string result;
};

int on_job_removed(sd_bus_message* message, void* data, sd_bus_error*) {
  JobEnd& end = *static_cast<JobEnd*>(data);
  std::uint32_t id = 0;
  const char* job = nullptr;
  const char* unit = nullptr;
  const char* result = nullptr;
  if (sd_bus_message_read(message, "uoss", &id, &job, &unit, &result) >= 0 && end.unit == unit) {
    end.result = result;
  }
  return 0;
}

Result<> await_job(sd_bus* bus, const JobEnd& end) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::microseconds(kBusTimeoutUsec);
  while (end.result.empty()) {
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      return fail(Code::kDeadlineExceeded, "systemd does not start {} in time", end.unit);
    }
    int r = sd_bus_process(bus, nullptr);
    if (r == 0) r = sd_bus_wait(bus, static_cast<std::uint64_t>(left.count()));
    if (r < 0) return fail(Error::from_errno_value(-r, "wait for systemd to start", end.unit));
  }
  if (end.result == "done") return {};
  return fail(Code::kUnavailable, "systemd could not start {}: its job ended with \"{}\"", end.unit,
              end.result);
}

}  // namespace

std::string systemd_unit_of(const std::string& cgroups_path) {
  const std::size_t first = cgroups_path.find(':');
  const std::size_t second = first == std::string::npos ? first : cgroups_path.find(':', first + 1);
  if (second == std::string::npos || cgroups_path.find('/') != std::string::npos) return {};
  const std::string prefix = cgroups_path.substr(first + 1, second - first - 1);
  const std::string name = cgroups_path.substr(second + 1);
  if (name.empty() || name.ends_with(".slice")) return name;
  return prefix.empty() ? name + ".scope" : prefix + "-" + name + ".scope";
}

std::string slice_of(const std::string& cgroups_path) {
  const std::string slice = cgroups_path.substr(0, cgroups_path.find(':'));
  return slice.empty() ? "system.slice" : slice;
}

std::string cgroup_path_of(const std::string& cgroups_path) {
  const std::string unit = systemd_unit_of(cgroups_path);
  return unit.empty() ? cgroups_path : expand_slice(slice_of(cgroups_path)) + "/" + unit;
}

Result<std::vector<std::uint8_t>> cpu_mask(const std::string& list) {
  std::vector<std::uint8_t> mask;
  std::string_view rest = list;
  while (!rest.empty()) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    const std::size_t dash = part.find('-');
    const auto from = parse_control_number(part.substr(0, dash));
    const auto to = dash == part.npos ? from : parse_control_number(part.substr(dash + 1));
    if (!from || !to || *from > *to || *to > kMaxCpu) {
      return fail(Code::kInvalidArgument, "\"{}\" is no list of CPUs or memory nodes",
                  list.substr(0, 100));
    }
    if (mask.size() <= *to / 8) mask.resize(*to / 8 + 1);
    for (std::uint64_t i = *from; i <= *to; ++i) {
      mask[i / 8] = static_cast<std::uint8_t>(mask[i / 8] | (1U << (i % 8)));
    }
  }
  return mask;
}

Result<std::vector<UnitProperty>> plan_unit_properties(const CgroupLimits& limits,
                                                       const CgroupNow& now, bool v2) {
  std::vector<UnitProperty> out;
  if (limits.cpu_shares) {
    if (v2) {
      out.push_back({"CPUWeight", weight_of_shares(*limits.cpu_shares)});
    } else {
      out.push_back({"CPUShares", *limits.cpu_shares});
    }
  }
  if (limits.cpu_quota || limits.cpu_period) {
    const std::int64_t quota = limits.cpu_quota.value_or(now.cpu_quota.value_or(-1));
    const std::uint64_t period = limits.cpu_period.value_or(now.cpu_period.value_or(100'000));
    if (limits.cpu_period) out.push_back({"CPUQuotaPeriodUSec", period});
    out.push_back({"CPUQuotaPerSecUSec", quota_per_second(quota, period)});
  }
  if (v2 && !limits.cpuset_cpus.empty()) {
    TRY(auto mask, cpu_mask(limits.cpuset_cpus));
    out.push_back({"AllowedCPUs", std::move(mask)});
  }
  if (v2 && !limits.cpuset_mems.empty()) {
    TRY(auto mask, cpu_mask(limits.cpuset_mems));
    out.push_back({"AllowedMemoryNodes", std::move(mask)});
  }
  if (limits.memory) {
    out.push_back({v2 ? "MemoryMax" : "MemoryLimit", or_infinity(*limits.memory)});
  }
  if (v2 && limits.memory_reservation) {
    out.push_back({"MemoryLow", or_infinity(*limits.memory_reservation)});
  }
  if (v2 && limits.memory_swap) {
    const std::int64_t memory = limits.memory.value_or(static_cast<std::int64_t>(
        std::min<std::uint64_t>(now.memory.value_or(0), std::numeric_limits<std::int64_t>::max())));
    out.push_back({"MemorySwapMax", *limits.memory_swap < 0
                                        ? kInfinity
                                        : or_infinity(*limits.memory_swap - memory)});
  }
  if (limits.pids) out.push_back({"TasksMax", or_infinity(*limits.pids)});
  if (!v2 && limits.io_weight) out.push_back({"BlockIOWeight", *limits.io_weight});
  if (v2 && limits.io_weight) out.push_back({"IOWeight", *limits.io_weight});
  return out;
}

Result<> set_unit_properties(const std::string& unit, const std::vector<UnitProperty>& properties) {
  if (properties.empty()) return {};
  TRY(const Bus bus, open_bus(unit));
  TRY(const Message message, set_properties_call(bus.get(), unit, properties));
  return call(bus.get(), message, "SetUnitProperties", unit);
}

Result<> start_scope(const std::string& cgroups_path, pid_t pid,
                     std::vector<UnitProperty> properties) {
  JobEnd end{systemd_unit_of(cgroups_path), {}};
  const std::string& unit = end.unit;
  if (!unit.ends_with(".scope")) {
    return fail(Code::kInvalidArgument, "linux.cgroupsPath: \"{}\" names no scope",
                cgroups_path.substr(0, 200));
  }
  properties.push_back({"Description", "container of " + unit});
  properties.push_back({"Slice", slice_of(cgroups_path)});
  properties.push_back({"PIDs", std::vector<std::uint32_t>{static_cast<std::uint32_t>(pid)}});
  properties.push_back({"Delegate", true});
  properties.push_back({"DefaultDependencies", false});
  for (const char* kind :
       {"CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"}) {
    properties.push_back({kind, true});
  }
  // Else a scope that the OOM killer ended would stay, and its name with it.
  properties.push_back({"CollectMode", std::string("inactive-or-failed")});

  TRY(const Bus bus, open_bus(unit));
  const int matched = sd_bus_match_signal(bus.get(), nullptr, kService, kObject, kManager,
                                          "JobRemoved", &on_job_removed, &end);
  if (matched < 0) return fail(Error::from_errno_value(-matched, "listen to systemd"));
  TRY(const Message subscribe, make_call(bus.get(), "Subscribe"));
  CHECK_OK(call(bus.get(), subscribe, "Subscribe", unit));
  TRY(const Message start, start_call(bus.get(), unit, properties));
  CHECK_OK(call(bus.get(), start, "StartTransientUnit", unit));
  return await_job(bus.get(), end);
}

}  // namespace kuasar::os
