#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include "base/unique_fd.h"
#include "os/process_usage.h"
#include "support/lab_parts.h"
#include "support/wait.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

// mountinfo writes blanks and backslashes as octal escapes.
std::string unescape(const std::string& text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      result += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      result += text[i];
    }
  }
  return result;
}

struct MountLine {
  std::string point;
  std::string type;
};

std::vector<MountLine> mounts() {
  std::vector<MountLine> result;
  std::ifstream file("/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string skipped;
    MountLine mount;
    words >> skipped >> skipped >> skipped >> skipped >> mount.point;
    while (words >> skipped && skipped != "-") {
    }
    words >> mount.type;
    mount.point = unescape(mount.point);
    result.push_back(mount);
  }
  return result;
}

bool below(const std::string& path, const std::string& top) {
  return path == top || path.starts_with(top + "/");
}

// The inodes of the namespaces that are pinned below the lab.
std::set<ino_t> pinned_namespaces(const std::string& root) {
  std::set<ino_t> result;
  for (const MountLine& mount : mounts()) {
    struct stat st {};
    if (mount.type == "nsfs" && below(mount.point, root) && ::stat(mount.point.c_str(), &st) == 0) {
      result.insert(st.st_ino);
    }
  }
  return result;
}

// A process of the lab names its directory on the command line, or lives in a namespace of a pod.
std::vector<pid_t> lab_processes(const std::string& root) {
  const std::set<ino_t> pins = pinned_namespaces(root);
  std::vector<pid_t> result;
  for (const pid_t pid : os::all_pids()) {
    if (pid == ::getpid()) continue;
    const std::string proc = "/proc/" + std::to_string(pid);
    std::string words = read_text(proc + "/cmdline");
    std::replace(words.begin(), words.end(), '\0', '\n');
    bool ours = words.find(root + "/") != std::string::npos;
    for (const char* kind : {"/ns/ipc", "/ns/uts", "/ns/pid", "/ns/net"}) {
      struct stat st {};
      ours = ours || (::stat((proc + kind).c_str(), &st) == 0 && pins.count(st.st_ino) > 0);
    }
    if (ours) result.push_back(pid);
  }
  return result;
}

std::vector<pid_t> cgroup_members(const std::string& name) {
  std::vector<pid_t> result;
  std::error_code ec;
  for (const fs::path& hierarchy : lab_cgroup_hierarchies()) {
    std::vector<fs::path> dirs = {hierarchy / name};
    for (auto it = fs::recursive_directory_iterator(hierarchy / name, ec);
         !ec && it != fs::recursive_directory_iterator(); it.increment(ec)) {
      if (it->is_directory(ec)) dirs.push_back(it->path());
    }
    for (const fs::path& dir : dirs) {
      std::ifstream procs(dir / "cgroup.procs");
      for (pid_t pid = 0; procs >> pid;) result.push_back(pid);
    }
  }
  return result;
}

// rmdir from the leaves up; a cgroup with members stays.
void remove_cgroup(const fs::path& dir) {
  std::error_code ec;
  std::vector<fs::path> children;
  for (const auto& entry : fs::directory_iterator(dir, ec)) {
    if (entry.is_directory(ec)) children.push_back(entry.path());
  }
  for (const fs::path& child : children) remove_cgroup(child);
  ::rmdir(dir.c_str());
}

void unmount_below(const std::string& root) {
  std::vector<MountLine> all = mounts();
  for (auto mount = all.rbegin(); mount != all.rend(); ++mount) {
    if (below(mount->point, root)) ::umount2(mount->point.c_str(), MNT_DETACH);
  }
}

}  // namespace

std::vector<fs::path> lab_cgroup_hierarchies() {
  std::vector<fs::path> result;
  for (const MountLine& mount : mounts()) {
    if (mount.type == "cgroup" || mount.type == "cgroup2") result.emplace_back(mount.point);
  }
  return result;
}

std::vector<std::string> remove_lab(const fs::path& root, const std::string& name) {
  std::vector<std::string> left;
  const auto nobody_left = [&] {
    std::vector<pid_t> pids = lab_processes(root);
    for (const pid_t pid : cgroup_members(name)) pids.push_back(pid);
    for (const pid_t pid : pids) ::kill(pid, SIGKILL);
    return pids.empty();
  };
  if (!wait_until(nobody_left, std::chrono::seconds(10))) left.emplace_back("processes");

  const auto no_cgroups = [&] {
    bool gone = true;
    for (const fs::path& hierarchy : lab_cgroup_hierarchies()) {
      std::error_code ec;
      if (fs::exists(hierarchy / name, ec)) remove_cgroup(hierarchy / name);
      gone = gone && !fs::exists(hierarchy / name, ec);
    }
    return gone;
  };
  if (!wait_until(no_cgroups, std::chrono::seconds(10))) left.emplace_back("cgroups");

  unmount_below(root);
  if (fs::exists("/sys/class/net/" + name)) {
    const auto deleted = run_checked({"ip", "link", "delete", name});
    if (!deleted) left.push_back(deleted.error().message);
  }
  // A mount that is still there must not be emptied.
  for (const MountLine& mount : mounts()) {
    if (below(mount.point, root)) left.push_back("mount " + mount.point);
  }
  std::error_code ec;
  if (left.empty()) {
    for (const auto& entry : fs::directory_iterator(root, ec)) {
      if (entry.path().filename() != "log") fs::remove_all(entry.path(), ec);
    }
  }
  return left;
}

std::string lab_link_alias(const fs::path& root) {
  return std::to_string(::getpid()) + " " + root.string();
}

void remove_stale_labs() {
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator("/sys/class/net", ec)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("kuasar-")) continue;
    std::istringstream alias(read_text(entry.path() / "ifalias"));
    pid_t owner = 0;
    std::string root;
    if (!(alias >> owner >> root) || root.size() < 2 || ::kill(owner, 0) == 0) continue;
    remove_lab(root, name);
  }
}

pid_t lab_keeper(const fs::path& dir) {
  std::vector<pid_t> found;
  for (const pid_t pid : os::all_pids()) {
    const std::string words = read_text("/proc/" + std::to_string(pid) + "/cmdline");
    if (words.find("kuasar-keeper") != std::string::npos &&
        words.find(dir.native() + "/") != std::string::npos) {
      found.push_back(pid);
    }
  }
  // A child of the keeper's has its command line until it executes its program, and, when pids have
  // wrapped around, perhaps a lower pid.
  for (const pid_t pid : found) {
    const std::string status = read_text("/proc/" + std::to_string(pid) + "/status");
    const bool is_child = std::any_of(found.begin(), found.end(), [&](pid_t parent) {
      return status.find(fmt::format("\nPPid:\t{}\n", parent)) != std::string::npos;
    });
    if (!is_child) return pid;
  }
  return 0;
}

std::size_t count_lines(const fs::path& file, const std::string& end) {
  std::ifstream stream(file);
  std::size_t count = 0;
  for (std::string line; std::getline(stream, line);) count += line.ends_with(end) ? 1 : 0;
  return count;
}

bool socket_accepts(const fs::path& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.native().size() >= sizeof address.sun_path) return false;
  std::strncpy(address.sun_path, socket.c_str(), sizeof address.sun_path - 1);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

}  // namespace kuasar::test
