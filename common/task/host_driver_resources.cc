#include <google/protobuf/any.pb.h>

#include <utility>

#include "base/log.h"
#include "os/cgroup_files.h"
#include "os/cgroup_freezer.h"
#include "os/cgroup_limits.h"
#include "os/systemd_unit.h"
#include "task/cgroup_stats.h"
#include "task/host_driver.h"

// What is done to a container by its cgroups.

namespace kuasar::task {
namespace {

// The control files and, where systemd owns the cgroup, its unit: first the one that can say no to
// all of it.
Result<> set_limits(const std::vector<std::string>& dirs, const std::string& unit,
                    const os::CgroupLimits& limits) {
  const os::CgroupControllers controllers = os::find_controllers(dirs);
  const os::CgroupNow now = os::read_cgroup_now(controllers);
  TRY(const std::vector<os::ControlWrite> writes, os::plan_limits(controllers, now, limits));
  if (!unit.empty()) {
    TRY(const std::vector<os::UnitProperty> properties,
        os::plan_unit_properties(limits, now, controllers.cpuacct.v2));
    CHECK_OK(os::set_unit_properties(unit, properties));
  }
  return os::apply_limits(writes);
}

}  // namespace

Result<HostDriver::EntryPtr> HostDriver::with_cgroups(const std::string& container) const {
  const EntryPtr entry = find(container);
  if (!entry) return fail(Code::kNotFound, "container {} not found", container);
  if (entry->cgroups.empty()) {
    return fail(Code::kFailedPrecondition,
                "container {} has no cgroup of its own: linux.cgroupsPath of its spec is the "
                "sandboxer's own cgroup",
                container);
  }
  return entry;
}

Task<Result<>> HostDriver::freeze(std::string container) {
  CO_TRY(const EntryPtr entry, with_cgroups(container));
  auto freeze = [dirs = entry->cgroups] { return os::freeze_cgroup(dirs); };
  Result<> frozen = co_await pool_.run(std::move(freeze));
  if (!frozen) co_return fail(std::move(frozen).error().context("pause container {}", container));
  co_return frozen;
}

Task<Result<>> HostDriver::thaw(std::string container) {
  CO_TRY(const EntryPtr entry, with_cgroups(container));
  Result<> thawed = os::thaw_cgroup(entry->cgroups);
  if (!thawed) co_return fail(std::move(thawed).error().context("resume container {}", container));
  co_return thawed;
}

Task<Result<>> HostDriver::thaw_to_die(std::string container) {
  const EntryPtr entry = find(container);
  if (!entry || entry->cgroups.empty()) co_return Result<>();
  auto thaw = [dirs = entry->cgroups] { return os::thaw_to_die(dirs); };
  co_return co_await pool_.run(std::move(thaw));
}

bool HostDriver::frozen(const std::string& container) {
  const EntryPtr entry = find(container);
  return entry && os::is_frozen(entry->cgroups);
}

Task<Result<>> HostDriver::update(std::string container, os::CgroupLimits limits) {
  CO_TRY(const EntryPtr entry, with_cgroups(container));
  auto update = [dirs = entry->cgroups, unit = entry->systemd_unit, limits = std::move(limits)] {
    return set_limits(dirs, unit, limits);
  };
  Result<> updated = co_await pool_.run(std::move(update));
  if (!updated)
    co_return fail(std::move(updated).error().context("update container {}", container));
  co_return updated;
}

Task<Result<google::protobuf::Any>> HostDriver::stats(std::string container) {
  CO_TRY(const EntryPtr entry, with_cgroups(container));
  auto read = [dirs = entry->cgroups] { return cgroup_stats(dirs); };
  Result<google::protobuf::Any> stats = co_await pool_.run(std::move(read));
  if (!stats) co_return fail(std::move(stats).error().context("stats of container {}", container));
  co_return stats;
}

std::uint64_t HostDriver::oom_kills(const std::string& container) {
  const EntryPtr entry = find(container);
  return entry ? ooms_.kills(container, entry->cgroups) : 0;
}

void HostDriver::on_oom(const asio::any_io_executor& executor, const std::string& container,
                        std::function<void()> then) {
  const EntryPtr entry = find(container);
  if (!entry) return;
  Result<std::unique_ptr<os::OomWatch>> opened =
      os::OomWatch::open(executor, entry->cgroups, std::move(then));
  if (opened) {
    entry->oom = std::move(*opened);
  } else {
    log::debug({"", container}, "OOM kills are told at its end only: {}", opened.error().message);
  }
}

}  // namespace kuasar::task
