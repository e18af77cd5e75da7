#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>

#include "support/census_parts.h"

namespace kuasar::test::census {
namespace {

struct Mount {
  std::string root;
  std::string point;
  std::string type;
  std::string source;
  std::string super_options;
};

// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
std::string unescape(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      const std::string digits(text.substr(i + 1, 3));
      plain.push_back(static_cast<char>(std::strtol(digits.c_str(), nullptr, 8)));
      i += 3;
    } else {
      plain.push_back(text[i]);
    }
  }
  return plain;
}

std::string proc_file(pid_t pid, const char* name) {
  return read_text("/proc/" + std::to_string(pid) + "/" + name);
}

std::vector<Mount> read_mounts(pid_t pid) {
  std::vector<Mount> mounts;
  const std::string text = proc_file(pid, "mountinfo");
  for (std::string_view line : split(text, '\n')) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) {
      continue;
    }
    const auto left = words_of(line.substr(0, dash));
    const auto right = words_of(line.substr(dash + 3));
    if (left.size() < 5 || right.size() < 2) {
      continue;
    }
    mounts.push_back({unescape(left[3]), unescape(left[4]), std::string(right[0]),
                      unescape(right[1]), right.size() > 2 ? std::string(right[2]) : ""});
  }
  return mounts;
}

// One of our processes per namespace of a kind, so that nothing is counted twice; with words for
// those that are not the test's own.
template <typename Visit>
void for_each_namespace(const ProcessTable& processes, const char* kind, Visit visit) {
  std::set<std::string> seen;
  for (const pid_t pid : processes.namespace_witnesses()) {
    const Process* process = processes.find(pid);
    if (process != nullptr && seen.insert(process->namespaces.at(kind)).second) {
      visit(pid, pid == processes.self().pid ? "" : ", in the namespace of " + processes.role(pid));
    }
  }
}

struct Hierarchy {
  std::string controllers;
  std::string root;
  std::string point;

  std::string name() const { return controllers.empty() ? "unified" : controllers; }
};

// A v1 hierarchy is told by its controllers, which stand both in /proc/<pid>/cgroup and among the
// mount's super options.
std::vector<Hierarchy> read_hierarchies(const ProcessTable& processes) {
  std::vector<Hierarchy> hierarchies;
  std::set<std::string> seen;
  for (const Mount& mount : read_mounts(processes.self().pid)) {
    if (mount.type == "cgroup2" && seen.insert("").second) {
      hierarchies.push_back({"", mount.root, mount.point});
    }
    if (mount.type != "cgroup") {
      continue;
    }
    const auto options = split(mount.super_options, ',');
    for (const auto& [controllers, path] : processes.self().cgroups) {
      const auto wanted = split(controllers, ',');
      const bool matches =
          !controllers.empty() &&
          std::all_of(wanted.begin(), wanted.end(), [&options](std::string_view controller) {
            return std::find(options.begin(), options.end(), controller) != options.end();
          });
      if (matches && seen.insert(controllers).second) {
        hierarchies.push_back({controllers, mount.root, mount.point});
      }
    }
  }
  return hierarchies;
}

// True when processes that this pid namespace cannot see live in the cgroup itself: the kernel
// shows these as pid 0. A process of ours is never one of them.
bool hides_processes(const std::string& dir) {
  const std::string pids = read_text(dir + "/cgroup.procs");
  return pids.starts_with("0\n") || pids.find("\n0\n") != std::string::npos;
}

// Ours when one of our processes lives in it or below it; of others when only others do, or when
// nobody does and it bears no name of a test; else without an owner.
void judge_cgroup(const Hierarchy& hierarchy, const std::string& dir, const std::string& path,
                  const ProcessTable& processes, CensusItem& item) {
  bool inhabited = false;
  item.standing = CensusStanding::kForeign;
  for (const auto& [pid, process] : processes.all()) {
    const auto found = process.cgroups.find(hierarchy.controllers);
    if (found == process.cgroups.end() ||
        !(found->second == path || found->second.starts_with(path + "/"))) {
      continue;
    }
    inhabited = true;
    if (process.standing == CensusStanding::kOurs) {
      item.standing = CensusStanding::kOurs;
      return;
    }
    if (process.standing == CensusStanding::kAdrift) {
      item.standing = CensusStanding::kAdrift;
      item.origin = process.origin;
    }
  }
  // Tests name their cgroup parents; another program of this machine may make and leave what it
  // likes.
  const bool named =
      path.find("kuasar") != std::string::npos || path.find("kubepods") != std::string::npos;
  if (!inhabited && named && !hides_processes(dir)) {
    item.standing = CensusStanding::kUnowned;
  }
}

void add_hierarchy(const Hierarchy& hierarchy, const ProcessTable& processes, Items& items) {
  std::error_code error;
  const auto skip = std::filesystem::directory_options::skip_permission_denied;
  std::filesystem::recursive_directory_iterator entry(hierarchy.point, skip, error);
  for (; !error && entry != std::filesystem::recursive_directory_iterator();
       entry.increment(error)) {
    std::error_code vanished;
    if (!entry->is_directory(vanished)) {
      continue;
    }
    std::string path = entry->path().native().substr(hierarchy.point.size());
    if (hierarchy.root != "/") {
      path = hierarchy.root + path;
    }
    CensusItem item;
    item.kind = "cgroup";
    item.key = hierarchy.name() + ":" + path;
    item.words = item.key;
    judge_cgroup(hierarchy, entry->path().native(), path, processes, item);
    items.push_back(std::move(item));
  }
}

struct UnixSocket {
  std::string inode;
  std::string path;
  bool listens = false;
};

// Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON. A path may hold
// spaces, so that it is what is left of the line.
std::vector<UnixSocket> read_unix_sockets(pid_t pid) {
  std::vector<UnixSocket> sockets;
  const std::string text = proc_file(pid, "net/unix");
  for (std::string_view line : split(text, '\n')) {
    const auto fields = words_of(line);
    if (fields.size() < 7 || !fields[0].ends_with(':')) {
      continue;
    }
    UnixSocket socket;
    socket.inode = fields[6];
    socket.listens = fields[3] == "00010000";
    const char* after_inode = fields[6].data() + fields[6].size();
    const std::string_view rest(after_inode,
                                static_cast<std::size_t>(line.data() + line.size() - after_inode));
    socket.path = rest.empty() ? "" : std::string(rest.substr(1));
    sockets.push_back(std::move(socket));
  }
  return sockets;
}

struct Holder {
  pid_t pid = 0;
  CensusStanding standing = CensusStanding::kForeign;
  std::string origin;
};

// The best reason why a socket should be counted: a principal before its descendants, these before
// processes adrift.
Holder holder_of(const UnixSocket& socket, const ProcessTable& processes) {
  Holder best;
  const auto [begin, end] = processes.socket_holders().equal_range("socket:[" + socket.inode + "]");
  for (auto it = begin; it != end; ++it) {
    const Process* process = processes.find(it->second);
    if (processes.is_principal(it->second)) {
      return {it->second, CensusStanding::kOurs, ""};
    }
    if (best.pid == 0 ||
        (best.standing != CensusStanding::kOurs && process->standing != CensusStanding::kForeign)) {
      best = {it->second, process->standing, process->origin};
    }
  }
  return best;
}

}  // namespace

void add_mounts(const CensusScope& scope, const ProcessTable& processes, Items& items) {
  for_each_namespace(processes, "mnt", [&](pid_t pid, const std::string& where) {
    for (const Mount& mount : read_mounts(pid)) {
      CensusItem item;
      item.standing =
          lies_below(mount.point, scope.dirs) ? CensusStanding::kOurs : CensusStanding::kUnowned;
      if (mount.type == "nsfs") {
        item.kind = "nsfs pin";
        item.key = mount.point + where;
        item.words = mount.point + " -> " + mount.root + where;
      } else {
        item.kind = "mount";
        item.key = mount.point + " on " + mount.type + " (source " + mount.source + ", root " +
                   mount.root + ")" + where;
        item.words = item.key;
      }
      items.push_back(std::move(item));
    }
  });
}

void add_cgroups(const ProcessTable& processes, Items& items) {
  for (const Hierarchy& hierarchy : read_hierarchies(processes)) {
    add_hierarchy(hierarchy, processes, items);
  }
}

void add_unix_sockets(const CensusScope& scope, const ProcessTable& processes, Items& items) {
  for_each_namespace(processes, "net", [&](pid_t witness, const std::string& where) {
    for (const UnixSocket& socket : read_unix_sockets(witness)) {
      const Holder holder = holder_of(socket, processes);
      const bool in_our_dirs = lies_below(socket.path, scope.dirs);
      if (socket.path.empty() && holder.standing != CensusStanding::kOurs) {
        continue;
      }
      // Connections to containerd's own sockets are counted where their client is.
      if (holder.pid != 0 && holder.pid == scope.containerd && !socket.listens &&
          !socket.path.empty()) {
        continue;
      }
      const std::string held_by = holder.pid == 0 ? "nobody" : processes.role(holder.pid);
      CensusItem item;
      item.kind = "unix socket";
      item.key = socket.path.empty() ? "unnamed of " + held_by
                                     : socket.path + (socket.listens ? " listening" : "");
      item.key += where;
      item.words = item.key + ", inode " + socket.inode + ", held by " + held_by;
      item.standing = in_our_dirs ? CensusStanding::kOurs : holder.standing;
      item.origin = in_our_dirs ? "" : holder.origin;
      items.push_back(std::move(item));
    }
  });
}

void add_links(const ProcessTable& processes, Items& items) {
  for_each_namespace(processes, "net", [&items](pid_t pid, const std::string& where) {
    const std::string text = proc_file(pid, "net/dev");
    for (std::string_view line : split(text, '\n')) {
      const std::size_t colon = line.find(':');
      if (colon == std::string_view::npos) {
        continue;
      }
      std::string_view name = line.substr(0, colon);
      name.remove_prefix(std::min(name.find_first_not_of(' '), name.size()));
      CensusItem item;
      item.kind = "link";
      item.key = std::string(name) + where;
      item.words = item.key;
      item.standing = CensusStanding::kUnowned;
      items.push_back(std::move(item));
    }
  });
}

}  // namespace kuasar::test::census
