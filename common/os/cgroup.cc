#include "os/cgroup.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>

#include "base/files.h"
#include "os/cgroup_files.h"
#include "os/cgroup_freezer.h"
#include "os/pidfd.h"

namespace kuasar::os {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in{std::string(text)};
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
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

// Hierarchies are mounted once, at boot; mountinfo itself grows with the pods.
const std::vector<CgroupHierarchy>& mounted_hierarchies() {
  static const std::vector<CgroupHierarchy> hierarchies =
      parse_cgroup_mounts(read_file("/proc/self/mountinfo").value_or(""));
  return hierarchies;
}

// The directories of a process, one per hierarchy that it is not in the root of; none when there
// is no such process.
std::vector<std::string> member_dirs(const std::string& pid) {
  const Result<std::string> text = read_file("/proc/" + pid + "/cgroup");
  if (!text) return {};
  return join_cgroups(mounted_hierarchies(), parse_proc_cgroup(*text));
}

// "0" when it is not to be had, or outside of our PID namespace.
std::string parent_of(pid_t pid) {
  constexpr std::string_view kKey = "\nPPid:\t";
  const std::string status = read_file(fmt::format("/proc/{}/status", pid)).value_or("");
  const std::size_t at = status.find(kKey);
  if (at == std::string::npos) return "0";
  const std::size_t begin = at + kKey.size();
  return status.substr(begin, status.find('\n', begin) - begin);
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

Result<std::vector<std::string>> cgroups_down_to(const std::string& path) {
  std::vector<std::string> names = split(path, '/');
  std::erase(names, "");
  for (const std::string& name : names) {
    if (name == "." || name == ".." || name.size() > 255) {
      return fail(Code::kInvalidArgument, "cgroup path \"{}\" has a component that is no name",
                  path.substr(0, 200));
    }
  }
  std::vector<std::string> all;
  if (names.empty() || names.back().ends_with(".slice")) return all;
  for (const CgroupHierarchy& hierarchy : mounted_hierarchies()) {
    std::string dir = hierarchy.mount_point;
    for (const std::string& name : names) {
      dir += "/" + name;
      all.push_back(dir);
    }
  }
  return all;
}

Result<std::vector<std::string>> missing_cgroups(const std::string& path) {
  TRY(std::vector<std::string> dirs, cgroups_down_to(path));
  std::erase_if(dirs, [](const std::string& dir) { return ::access(dir.c_str(), F_OK) == 0; });
  return dirs;
}

std::string expand_slice(const std::string& name) {
  constexpr std::string_view kEnding = ".slice";
  if (!name.ends_with(kEnding) || name.find('/') != std::string::npos) return name;
  const std::string stem = name.substr(0, name.size() - kEnding.size());
  std::string path;
  for (std::size_t dash = stem.find('-'); dash != std::string::npos;
       dash = stem.find('-', dash + 1)) {
    path += fmt::format("/{}{}", stem.substr(0, dash), kEnding);
  }
  return path + "/" + name;
}

Result<std::vector<std::string>> cgroups_at(const std::string& path) {
  const std::string expanded = expand_slice(path);
  std::vector<std::string> found;
  for (const std::string& name : split(expanded, '/')) {
    if (name == "." || name == "..") {
      return fail(Code::kInvalidArgument, "cgroup path \"{}\" has a component that is no name",
                  path.substr(0, 200));
    }
  }
  for (const CgroupHierarchy& hierarchy : mounted_hierarchies()) {
    const std::string dir =
        hierarchy.mount_point + (expanded.starts_with('/') ? "" : "/") + expanded;
    if (::access(dir.c_str(), F_OK) == 0) found.push_back(dir);
  }
  return found;
}

Result<> make_cgroups(const std::vector<std::string>& dirs) {
  for (const std::string& dir : dirs) CHECK_OK(make_dir(dir, 0755));
  return {};
}

Result<std::vector<std::string>> own_cgroups_of(pid_t pid) {
  TRY(const std::string theirs, read_file(fmt::format("/proc/{}/cgroup", pid)));
  std::vector<std::string> others = member_dirs("self");
  for (std::string& dir : member_dirs(parent_of(pid))) others.push_back(std::move(dir));
  std::vector<std::string> out;
  for (const std::string& dir : join_cgroups(mounted_hierarchies(), parse_proc_cgroup(theirs))) {
    const bool shared = std::any_of(others.begin(), others.end(), [&](const std::string& other) {
      return other == dir || other.rfind(dir + "/", 0) == 0;
    });
    if (!shared) out.push_back(dir);
  }
  return out;
}

void prepare_cgroup_move() {
  static std::mutex at_it;
  const std::unique_lock lock(at_it, std::try_to_lock);
  if (!lock) return;
  for (const std::string& dir : member_dirs("thread-self")) {
    // Of v1: one thread, not its process. All hierarchies have one lock.
    if (write_control(dir + "/tasks", std::to_string(::gettid()))) return;
  }
}

bool in_cgroups(pid_t pid, const std::vector<std::string>& dirs) {
  const std::vector<std::string> own = member_dirs(std::to_string(pid));
  return std::any_of(own.begin(), own.end(), [&](const std::string& dir) {
    return std::any_of(dirs.begin(), dirs.end(), [&](const std::string& top) {
      return dir == top || dir.starts_with(top + "/");
    });
  });
}

bool has_child_in_other_cgroup(pid_t pid) {
  const fs::path proc = fs::path("/proc") / std::to_string(pid);
  const Result<std::string> own = read_file(proc / "cgroup");
  if (!own) return false;
  std::error_code ec;
  for (fs::directory_iterator thread(proc / "task", ec), end; !ec && thread != end;
       thread.increment(ec)) {
    const std::string children = read_file(thread->path() / "children").value_or("");
    for (const std::string& child : split(children, ' ')) {
      const Result<std::string> theirs = read_file("/proc/" + child + "/cgroup");
      if (theirs && !theirs->empty() && *theirs != *own) return true;
    }
  }
  return false;
}

std::vector<std::string> cgroups_below(const std::string& parent, const std::string& name) {
  std::vector<std::string> out;
  if (parent.ends_with(".slice")) return out;
  for (const CgroupHierarchy& hierarchy : mounted_hierarchies()) {
    const fs::path dir = fs::path(hierarchy.mount_point) / fs::path(parent).relative_path() / name;
    out.push_back(dir.lexically_normal().native());
  }
  return out;
}

namespace {

// A new v1 cpuset is empty and takes no process.
void fill_cpuset(const fs::path& dir) {
  for (const char* file : {"cpuset.cpus", "cpuset.mems"}) {
    if (!has_file(dir, file) || !read_control(dir / file).value_or("").empty()) continue;
    const Result<std::string> parents = read_control(dir.parent_path() / file);
    if (parents) (void)write_control(dir / file, *parents);
  }
}

// cgroup.subtree_control of each parent, from the hierarchy's root on; what it does not have or may
// not pass on is told by the limit that needs it.
void pass_controllers_on(const fs::path& root, const fs::path& dir) {
  fs::path at = root;
  for (const fs::path& name : dir.lexically_relative(root)) {
    for (const std::string& controller :
         split(read_control(at / "cgroup.controllers").value_or(""), ' ')) {
      (void)write_control(at / "cgroup.subtree_control", "+" + controller);
    }
    at /= name;
  }
}

}  // namespace

Result<std::vector<std::string>> make_container_cgroups(const std::string& path, bool of_systemd) {
  TRY(const std::vector<std::string> dirs, container_cgroups(path));
  std::vector<std::string> out;
  for (const CgroupHierarchy& hierarchy : mounted_hierarchies()) {
    const fs::path root = hierarchy.mount_point;
    for (const std::string& dir : dirs) {
      if (!dir.starts_with(hierarchy.mount_point + "/")) continue;
      fs::path at = root;
      bool made = true;
      for (const fs::path& name : fs::path(dir).lexically_relative(root)) {
        at /= name;
        made = made && make_dir(at, 0755);
        if (!hierarchy.v2) fill_cpuset(at);
      }
      if (!made) continue;
      if (hierarchy.v2 && !of_systemd) pass_controllers_on(root, dir);
      out.push_back(dir);
    }
  }
  return out;
}

Result<std::vector<std::string>> container_cgroups(const std::string& path) {
  // For its check of the path.
  CHECK_OK(missing_cgroups(path));
  const fs::path whole = path;
  std::vector<std::string> out;
  if (whole.relative_path().empty()) return out;
  for (const CgroupHierarchy& hierarchy : mounted_hierarchies()) {
    const fs::path dir = fs::path(hierarchy.mount_point) / whole.relative_path();
    out.push_back(dir.lexically_normal());
  }
  return out;
}

void enter_cgroups(pid_t pid, const std::vector<std::string>& dirs) {
  for (const std::string& dir : dirs) {
    if (make_dir(dir, 0755) && write_control(dir + "/cgroup.procs", std::to_string(pid))) continue;
    ::rmdir(dir.c_str());
  }
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

void signal_cgroup(const std::vector<std::string>& dirs, int signal, pid_t except) {
  std::map<pid_t, UniqueFd> processes;
  for (const pid_t pid : cgroup_pids(dirs)) {
    if (pid == except) continue;
    if (Result<UniqueFd> process = pidfd_open(pid)) processes[pid] = std::move(*process);
  }
  // Not /proc/PID/cgroup, which says "/" on v1 once the first thread of a process has ended.
  for (const pid_t pid : cgroup_pids(dirs)) {
    const auto process = processes.find(pid);
    if (process != processes.end()) (void)pidfd_signal(process->second.get(), signal);
  }
}

Result<> kill_cgroup(const std::vector<std::string>& dirs) {
  using namespace std::chrono_literals;
  for (const std::string& dir : dirs) {
    if (has_file(dir, "cgroup.kill") && !cgroup_pids({dir}).empty() &&
        write_control(dir + "/cgroup.kill", "1")) {
      // v2 kills what is frozen; a v1 freezer of a hybrid machine does not.
      return thaw_to_die(dirs);
    }
  }
  const ControllerDir freezer = find_controller(dirs, &CgroupControllers::freezer);
  const std::vector<std::string> scope = freezer ? std::vector<std::string>{freezer.dir} : dirs;
  for (int round = 0; round < 20; ++round) {
    if (cgroup_pids(scope).empty()) return {};
    // One that does not freeze in time is signalled all the same.
    if (freezer) (void)freeze_cgroup(scope, 200ms);
    signal_cgroup(scope, SIGKILL);
    // On v1 SIGKILL acts only on a thawed task.
    if (freezer) CHECK_OK(freezer.v2 ? thaw_cgroup(scope) : thaw_to_die(scope));
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
  using namespace std::chrono_literals;
  // A killed process keeps its cgroup until it has died, also when cgroup.procs has lost it
  // already; where the CPU limit leaves it no time that takes a while.
  const auto deadline = std::chrono::steady_clock::now() + 5s;
  for (const std::string& root : dirs) {
    for (const std::string& dir : with_children(root)) {
      while (::rmdir(dir.c_str()) != 0 && errno == EBUSY &&
             std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(2ms);
      }
    }
  }
}

}  // namespace kuasar::os
