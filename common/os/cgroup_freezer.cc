#include "os/cgroup_freezer.h"

#include <chrono>
#include <filesystem>
#include <thread>

#include "base/failpoint.h"
#include "base/files.h"
#include "os/cgroup_files.h"

namespace kuasar::os {
namespace {

using namespace std::chrono_literals;

bool all_stopped(const ControllerDir& freezer) {
  if (freezer.v2) {
    const Result<std::string> events = read_file(freezer.file("cgroup.events"));
    return !events || keyed_value(*events, "frozen") == 1U;
  }
  const Result<std::string> state = read_control(freezer.file("freezer.state"));
  return !state || *state == "FROZEN";
}

Result<> ask(const ControllerDir& freezer, bool frozen) {
  if (freezer.v2) return write_control(freezer.file("cgroup.freeze"), frozen ? "1" : "0");
  return write_control(freezer.file("freezer.state"), frozen ? "FROZEN" : "THAWED");
}

}  // namespace

Result<> freeze_cgroup(const std::vector<std::string>& dirs, std::chrono::milliseconds timeout) {
  const ControllerDir freezer = find_controller(dirs, &CgroupControllers::freezer);
  if (!freezer) {
    return fail(Code::kFailedPrecondition,
                "it has no freezer cgroup of its own; mount the freezer controller or cgroup v2");
  }
  CHECK_OK(ask(freezer, true));
  failpoint("cgroup.freezing");
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!all_stopped(freezer)) {
    if (std::chrono::steady_clock::now() >= deadline) {
      (void)ask(freezer, false);
      return fail(Code::kDeadlineExceeded,
                  "its processes do not freeze within {} ms: one of them hangs in the kernel",
                  timeout.count());
    }
    std::this_thread::sleep_for(1ms);
    // v1 stays FREEZING when a task has left the freezer meanwhile; asking again helps
    // (cgroup-v1/freezer-subsystem.rst).
    if (!freezer.v2) CHECK_OK(ask(freezer, true));
  }
  return {};
}

Result<> thaw_cgroup(const std::vector<std::string>& dirs) {
  const ControllerDir freezer = find_controller(dirs, &CgroupControllers::freezer);
  if (!freezer) return {};
  Result<> thawed = ask(freezer, false);
  if (!thawed && (thawed.error().err == ENOENT || thawed.error().err == ENODEV)) return {};
  return thawed;
}

Result<> thaw_to_die(const std::vector<std::string>& dirs) {
  const ControllerDir freezer = find_controller(dirs, &CgroupControllers::freezer);
  if (!freezer || freezer.v2) return {};
  CHECK_OK(thaw_cgroup(dirs));
  std::error_code ec;
  namespace fs = std::filesystem;
  for (fs::recursive_directory_iterator dir(freezer.dir, ec), end; !ec && dir != end;
       dir.increment(ec)) {
    std::error_code ignored;
    if (dir->is_directory(ignored)) {
      (void)write_control((dir->path() / "freezer.state").native(), "THAWED");
    }
  }
  return {};
}

bool is_frozen(const std::vector<std::string>& dirs) {
  const ControllerDir freezer = find_controller(dirs, &CgroupControllers::freezer);
  if (!freezer) return false;
  const char* file = freezer.v2 ? "cgroup.freeze" : "freezer.self_freezing";
  return read_control_number(freezer.file(file)) == 1U;
}

}  // namespace kuasar::os
