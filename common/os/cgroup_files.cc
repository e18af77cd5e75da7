#include "os/cgroup_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <iterator>
#include <limits>
#include <optional>
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

struct Kind {
  Controller controller;
  /// As a v1 hierarchy is mounted: /sys/fs/cgroup/memory, /sys/fs/cgroup/cpu,cpuacct.
  std::string_view name;
  /// The file that only a directory with the controller has. Null: a page size is in its name.
  const char* v1;
  const char* v2;
};

constexpr Kind kKinds[] = {
    {&CgroupControllers::cpu, "cpu", "cpu.shares", "cpu.max"},
    {&CgroupControllers::cpuacct, "cpuacct", "cpuacct.usage", "cpu.stat"},
    {&CgroupControllers::cpuset, "cpuset", "cpuset.cpus", "cpuset.cpus"},
    {&CgroupControllers::memory, "memory", "memory.usage_in_bytes", "memory.current"},
    {&CgroupControllers::pids, "pids", "pids.current", "pids.current"},
    {&CgroupControllers::io, "blkio", "blkio.throttle.io_service_bytes", "io.stat"},
    {&CgroupControllers::hugetlb, "hugetlb", nullptr, nullptr},
    {&CgroupControllers::freezer, "freezer", "freezer.state", "cgroup.freeze"},
};

const Kind& kind_of(Controller controller) {
  return *std::find_if(std::begin(kKinds), std::end(kKinds),
                       [&](const Kind& kind) { return kind.controller == controller; });
}

// A component of the path is the controller, or a list of them that has it.
bool names(std::string_view dir, std::string_view controller) {
  constexpr std::string_view kEnds = "/,";
  for (std::size_t at = dir.find(controller); at != std::string_view::npos;
       at = dir.find(controller, at + 1)) {
    const std::size_t end = at + controller.size();
    const bool begins = at > 0 && kEnds.find(dir[at - 1]) != std::string_view::npos;
    if (begins && (end == dir.size() || kEnds.find(dir[end]) != std::string_view::npos)) {
      return true;
    }
  }
  return false;
}

// The directory of one hierarchy.
class Place {
 public:
  explicit Place(const std::string& dir) : dir_(dir) {}

  const std::string& dir() const { return dir_; }
  bool v2() {
    if (!v2_) v2_ = has_file(dir_, "cgroup.controllers");
    return *v2_;
  }
  bool has(const Kind& kind) {
    if (kind.v1 == nullptr) return has_hugetlb(dir_);
    return has_file(dir_, v2() ? kind.v2 : kind.v1);
  }

 private:
  const std::string& dir_;
  std::optional<bool> v2_;
};

ControllerDir find(std::vector<Place>& places, const Kind& kind) {
  ControllerDir found;
  const auto search = [&](bool named) {
    for (Place& place : places) {
      if (names(place.dir(), kind.name) != named || !place.has(kind)) continue;
      if (!found || !place.v2()) found = {place.dir(), place.v2()};
      // Found for good.
      if (!found.v2) return;
    }
  };
  // Where v1 is mounted is a custom: it says where to look first, and nothing more.
  search(true);
  if (!found || found.v2) search(false);
  return found;
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
  std::vector<Place> places;
  for (const std::string& dir : dirs) places.emplace_back(dir);
  CgroupControllers found;
  for (const Controller controller : wanted) {
    found.*controller = find(places, kind_of(controller));
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
