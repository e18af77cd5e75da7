#include "os/cgroup_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "base/files.h"
#include "base/unique_fd.h"

namespace kuasar::os {
namespace {

namespace fs = std::filesystem;

bool has_file(const std::string& dir, std::string_view file) {
  return ::access(fmt::format("{}/{}", dir, file).c_str(), F_OK) == 0;
}

// Page sizes are part of these files' names.
bool has_hugetlb(const std::string& dir) {
  std::error_code ec;
  for (fs::directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec)) {
    if (it->path().filename().native().starts_with("hugetlb.")) return true;
  }
  return false;
}

bool has_controller(const std::string& dir, bool v2, Controller controller) {
  // The file that only a directory with the controller has: v1, v2.
  struct Mark {
    Controller controller;
    const char* v1;
    const char* v2;
  };
  constexpr Mark kMarks[] = {
      {&CgroupControllers::cpu, "cpu.shares", "cpu.max"},
      {&CgroupControllers::cpuacct, "cpuacct.usage", "cpu.stat"},
      {&CgroupControllers::cpuset, "cpuset.cpus", "cpuset.cpus"},
      {&CgroupControllers::memory, "memory.usage_in_bytes", "memory.current"},
      {&CgroupControllers::pids, "pids.current", "pids.current"},
      {&CgroupControllers::io, "blkio.throttle.io_service_bytes", "io.stat"},
      {&CgroupControllers::freezer, "freezer.state", "cgroup.freeze"},
  };
  for (const Mark& mark : kMarks) {
    if (mark.controller == controller) return has_file(dir, v2 ? mark.v2 : mark.v1);
  }
  return has_hugetlb(dir);
}

void take(ControllerDir& place, const std::string& dir, bool v2) {
  if (!place || (place.v2 && !v2)) place = {dir, v2};
}

}  // namespace

std::string ControllerDir::file(std::string_view name) const {
  return fmt::format("{}/{}", dir, name);
}

CgroupControllers find_controllers(const std::vector<std::string>& dirs) {
  return find_controllers(
      dirs, {&CgroupControllers::cpu, &CgroupControllers::cpuacct, &CgroupControllers::cpuset,
             &CgroupControllers::memory, &CgroupControllers::pids, &CgroupControllers::io,
             &CgroupControllers::hugetlb, &CgroupControllers::freezer});
}

CgroupControllers find_controllers(const std::vector<std::string>& dirs,
                                   std::initializer_list<Controller> wanted) {
  CgroupControllers found;
  for (const std::string& dir : dirs) {
    const bool v2 = has_file(dir, "cgroup.controllers");
    for (const Controller controller : wanted) {
      ControllerDir& place = found.*controller;
      // Found for good.
      if (place && !place.v2) continue;
      if (has_controller(dir, v2, controller)) take(place, dir, v2);
    }
  }
  return found;
}

ControllerDir find_controller(const std::vector<std::string>& dirs, Controller wanted) {
  return find_controllers(dirs, {wanted}).*wanted;
}

Result<> write_control(const std::string& path, std::string_view value) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path);
  if (::write(fd.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size())) {
    return fail_errno(fmt::format("write \"{}\" into", value), path);
  }
  return {};
}

Result<std::string> read_control(const std::string& path) {
  TRY(std::string text, read_file(path));
  text.erase(text.find_last_not_of(" \n\t") + 1);
  return text;
}

std::optional<std::uint64_t> parse_control_number(std::string_view text) {
  text = text.substr(0, text.find_last_not_of(" \n\t") + 1);
  if (text == "max") return std::numeric_limits<std::uint64_t>::max();
  std::uint64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc{} || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> read_control_number(const std::string& path) {
  const Result<std::string> text = read_file(path, 4096);
  return text ? parse_control_number(*text) : std::nullopt;
}

std::optional<std::uint64_t> keyed_value(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.size() > key.size() && line.starts_with(key) && line[key.size()] == ' ') {
      return parse_control_number(line.substr(key.size() + 1));
    }
  }
  return std::nullopt;
}

}  // namespace kuasar::os
