#include "os/cgroup.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <sstream>
#include <thread>

#include "base/files.h"
#include "base/unique_fd.h"

namespace kuasar::os {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in{std::string(text)};
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

// cgroup files take what is written in one write(2) and have no length to truncate.
bool write_control(const std::string& path, std::string_view value) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), value.data(), value.size()) == static_cast<ssize_t>(value.size());
}

// A directory and all below it, the deepest first.
std::vector<std::string> with_children(const std::string& dir) {
  std::vector<std::string> all;
  std::error_code ec;
  if (!fs::is_directory(dir, ec)) return all;
  all.push_back(dir);
  for (fs::recursive_directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec)) {
    std::error_code ignored;
    if (it->is_directory(ignored)) all.push_back(it->path().native());
  }
  std::sort(all.begin(), all.end(),
            [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  return all;
}

bool frozen(const std::string& dir) {
  const Result<std::string> state = read_file(dir + "/freezer.state");
  return !state || state->rfind("FROZEN", 0) == 0;
}

void freeze(const std::string& dir) {
  using namespace std::chrono_literals;
  if (!write_control(dir + "/freezer.state", "FROZEN")) return;
  // FREEZING lasts until every task has reached the freezer (cgroup-v1/freezer-subsystem.rst).
  for (int i = 0; i < 200 && !frozen(dir); ++i) {
    std::this_thread::sleep_for(1ms);
    write_control(dir + "/freezer.state", "FROZEN");
  }
}

// Hierarchies are mounted once, at boot; mountinfo itself grows with the pods.
const std::vector<CgroupHierarchy>& mounted_hierarchies() {
  static const std::vector<CgroupHierarchy> hierarchies =
      parse_cgroup_mounts(read_file("/proc/self/mountinfo").value_or(""));
  return hierarchies;
}

bool has_file(const std::string& dir, const char* file) {
  return ::access((dir + "/" + file).c_str(), F_OK) == 0;
}

}  // namespace

std::vector<CgroupMembership> parse_proc_cgroup(std::string_view text) {
  std::vector<CgroupMembership> out;
  for (const std::string& line : split(text, '\n')) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    out.push_back({line.substr(first + 1, second - first - 1), line.substr(second + 1)});
  }
  return out;
}

std::vector<CgroupHierarchy> parse_cgroup_mounts(std::string_view mountinfo) {
  std::vector<CgroupHierarchy> out;
  for (const std::string& line : split(mountinfo, '\n')) {
    const std::vector<std::string> words = split(line, ' ');
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (words.size() < 7 || words.end() - dash < 4) continue;
    const std::string& type = *(dash + 1);
    if (type != "cgroup" && type != "cgroup2") continue;
    CgroupHierarchy hierarchy;
    hierarchy.mount_point = words[4];
    hierarchy.root = words[3];
    hierarchy.v2 = type == "cgroup2";
    if (!hierarchy.v2) hierarchy.controllers = split(*(dash + 3), ',');
    out.push_back(std::move(hierarchy));
  }
  return out;
}

std::vector<std::string> join_cgroups(const std::vector<CgroupHierarchy>& hierarchies,
                                      const std::vector<CgroupMembership>& memberships) {
  std::vector<std::string> out;
  for (const CgroupMembership& member : memberships) {
    const std::vector<std::string> wanted = split(member.controllers, ',');
    for (const CgroupHierarchy& hierarchy : hierarchies) {
      const bool same =
          hierarchy.v2 ? member.controllers.empty()
                       : !wanted.empty() &&
                             std::find(hierarchy.controllers.begin(), hierarchy.controllers.end(),
                                       wanted.front()) != hierarchy.controllers.end();
      if (!same) continue;
      std::string path = member.path;
      if (hierarchy.root != "/" && path.rfind(hierarchy.root, 0) == 0) {
        path = path.substr(hierarchy.root.size());
      }
      if (path.empty() || path == "/" || path.find("/..") != std::string::npos) break;
      out.push_back(hierarchy.mount_point + path);
      break;
    }
  }
  return out;
}

Result<std::vector<std::string>> missing_cgroups(const std::string& path) {
  std::vector<std::string> names = split(path, '/');
  std::erase(names, "");
  for (const std::string& name : names) {
    if (name == "." || name == ".." || name.size() > 255) {
      return fail(Code::kInvalidArgument, "cgroup path \"{}\" has a component that is no name",
                  path.substr(0, 200));
    }
  }
  std::vector<std::string> missing;
  if (names.empty() || names.back().ends_with(".slice")) return missing;
  for (const CgroupHierarchy& hierarchy : mounted_hierarchies()) {
    std::string dir = hierarchy.mount_point;
    for (const std::string& name : names) {
      dir += "/" + name;
      if (::access(dir.c_str(), F_OK) != 0) missing.push_back(dir);
    }
  }
  return missing;
}

Result<> make_cgroups(const std::vector<std::string>& dirs) {
  for (const std::string& dir : dirs) CHECK_OK(make_dir(dir, 0755));
  return {};
}

Result<std::vector<std::string>> own_cgroups_of(pid_t pid) {
  const std::vector<CgroupHierarchy>& hierarchies = mounted_hierarchies();
  TRY(const std::string theirs, read_file(fmt::format("/proc/{}/cgroup", pid)));
  TRY(const std::string ours, read_file("/proc/self/cgroup"));
  const std::vector<std::string> mine = join_cgroups(hierarchies, parse_proc_cgroup(ours));
  std::vector<std::string> out;
  for (const std::string& dir : join_cgroups(hierarchies, parse_proc_cgroup(theirs))) {
    const bool holds_us = std::any_of(mine.begin(), mine.end(), [&](const std::string& own) {
      return own == dir || own.rfind(dir + "/", 0) == 0;
    });
    if (!holds_us) out.push_back(dir);
  }
  return out;
}

std::vector<pid_t> cgroup_pids(const std::vector<std::string>& dirs) {
  std::set<pid_t> pids;
  for (const std::string& root : dirs) {
    for (const std::string& dir : with_children(root)) {
      const Result<std::string> procs = read_file(dir + "/cgroup.procs");
      if (!procs) continue;
      for (const std::string& line : split(*procs, '\n')) {
        const pid_t pid = static_cast<pid_t>(std::atoi(line.c_str()));
        if (pid > 0) pids.insert(pid);
      }
    }
  }
  return {pids.begin(), pids.end()};
}

Result<> kill_cgroup(const std::vector<std::string>& dirs) {
  using namespace std::chrono_literals;
  for (const std::string& dir : dirs) {
    if (has_file(dir, "cgroup.kill") && !cgroup_pids({dir}).empty() &&
        write_control(dir + "/cgroup.kill", "1")) {
      return {};
    }
  }
  const auto freezer = std::find_if(dirs.begin(), dirs.end(), [](const std::string& dir) {
    return has_file(dir, "freezer.state");
  });
  const std::vector<std::string> scope =
      freezer != dirs.end() ? std::vector<std::string>{*freezer} : dirs;
  for (int round = 0; round < 20; ++round) {
    if (cgroup_pids(scope).empty()) return {};
    if (freezer != dirs.end()) freeze(*freezer);
    for (const pid_t pid : cgroup_pids(scope)) ::kill(pid, SIGKILL);
    // SIGKILL acts only on a thawed task.
    if (freezer != dirs.end()) write_control(*freezer + "/freezer.state", "THAWED");
    for (int i = 0; i < 50 && !cgroup_pids(scope).empty(); ++i) std::this_thread::sleep_for(1ms);
  }
  const std::size_t left = cgroup_pids(scope).size();
  if (left == 0) return {};
  return fail(Code::kDeadlineExceeded, "{} processes of {} survive SIGKILL", left, scope.front());
}

void remove_empty_cgroups(const std::vector<std::string>& dirs) {
  for (auto dir = dirs.rbegin(); dir != dirs.rend(); ++dir) ::rmdir(dir->c_str());
}

void remove_cgroups(const std::vector<std::string>& dirs) {
  for (const std::string& root : dirs) {
    for (const std::string& dir : with_children(root)) ::rmdir(dir.c_str());
  }
}

}  // namespace kuasar::os
