#include "os/systemd_unit.h"

#include <systemd/sd-bus.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

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

int append(sd_bus_message* message, const UnitProperty& property) {
  int r = sd_bus_message_open_container(message, 'r', "sv");
  if (r >= 0) r = sd_bus_message_append(message, "s", property.name.c_str());
  if (const auto* number = std::get_if<std::uint64_t>(&property.value)) {
    if (r >= 0) r = sd_bus_message_append(message, "v", "t", *number);
  } else {
    const auto& bytes = std::get<std::vector<std::uint8_t>>(property.value);
    if (r >= 0) r = sd_bus_message_open_container(message, 'v', "ay");
    if (r >= 0) r = sd_bus_message_append_array(message, 'y', bytes.data(), bytes.size());
    if (r >= 0) r = sd_bus_message_close_container(message);
  }
  return r >= 0 ? sd_bus_message_close_container(message) : r;
}

Result<Message> make_call(sd_bus* bus, const std::string& unit,
                          const std::vector<UnitProperty>& properties) {
  sd_bus_message* raw = nullptr;
  int r = sd_bus_message_new_method_call(bus, &raw, "org.freedesktop.systemd1",
                                         "/org/freedesktop/systemd1",
                                         "org.freedesktop.systemd1.Manager", "SetUnitProperties");
  Message message(raw);
  if (r >= 0) r = sd_bus_message_append(raw, "sb", unit.c_str(), 1);
  if (r >= 0) r = sd_bus_message_open_container(raw, 'a', "(sv)");
  for (const UnitProperty& property : properties) {
    if (r >= 0) r = append(raw, property);
  }
  if (r >= 0) r = sd_bus_message_close_container(raw);
  if (r < 0) return fail(Error::from_errno_value(-r, "build the properties of", unit));
  return message;
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
  sd_bus* raw = nullptr;
  const int opened = sd_bus_open_system(&raw);
  const Bus bus(raw);
  if (opened < 0) {
    return fail(Code::kFailedPrecondition,
                "no D-Bus connection to systemd ({}), and the container's cgroup is systemd's unit "
                "{}",
                Error::from_errno_value(-opened, "open the system bus").message, unit);
  }
  TRY(const Message message, make_call(bus.get(), unit, properties));
  sd_bus_error error = SD_BUS_ERROR_NULL;
  const int called = sd_bus_call(bus.get(), message.get(), kBusTimeoutUsec, &error, nullptr);
  if (called >= 0) return {};
  Error refused = Error::from_errno_value(-called, "SetUnitProperties", unit);
  if (error.message != nullptr) refused.message += fmt::format(" ({})", error.message);
  sd_bus_error_free(&error);
  return fail(std::move(refused));
}

}  // namespace kuasar::os
