#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string>

#include "support/census_parts.h"

namespace kuasar::test::census {
namespace {

// include/linux/sched.h, PF_KTHREAD; /proc/<pid>/stat shows it in field 9.
constexpr unsigned long kKernelThread = 0x00200000;

constexpr const char* kNamespaces[] = {"mnt", "pid", "net", "ipc", "uts", "user", "cgroup"};

std::string proc_path(pid_t pid, const char* entry) {
  return "/proc/" + std::to_string(pid) + "/" + entry;
}

template <typename Visit>
void for_each_number(const std::string& dir, Visit visit) {
  DIR* stream = ::opendir(dir.c_str());
  if (stream == nullptr) {
    return;
  }
  while (const dirent* entry = ::readdir(stream)) {
    int number = 0;
    const char* end = entry->d_name + std::char_traits<char>::length(entry->d_name);
    const auto parsed = std::from_chars(entry->d_name, end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end) {
      visit(number);
    }
  }
  ::closedir(stream);
}

// Fills what /proc/<pid>/stat says (proc(5)). False when the process has gone or is a kernel
// thread. The name is in parentheses and may itself hold spaces and parentheses.
bool read_stat(Process& process) {
  const std::string stat = read_text(proc_path(process.pid, "stat"));
  const std::size_t open = stat.find('(');
  const std::size_t close = stat.rfind(')');
  if (open == std::string::npos || close == std::string::npos) {
    return false;
  }
  const auto fields = words_of(std::string_view(stat).substr(close + 1));
  if (fields.size() < 20) {
    return false;
  }
  process.name = stat.substr(open + 1, close - open - 1);
  process.state = fields[0][0];
  process.parent = std::atoi(std::string(fields[1]).c_str());
  process.start_time = std::strtoull(std::string(fields[19]).c_str(), nullptr, 10);
  const unsigned long flags = std::strtoul(std::string(fields[6]).c_str(), nullptr, 10);
  return (flags & kKernelThread) == 0;
}

void read_details(Process& process) {
  process.command = read_text(proc_path(process.pid, "cmdline"));
  std::replace(process.command.begin(), process.command.end(), '\0', ' ');
  while (process.command.ends_with(' ')) {
    process.command.pop_back();
  }
  process.executable = read_symlink(proc_path(process.pid, "exe"));
  process.working_dir = read_symlink(proc_path(process.pid, "cwd"));
  for (const char* kind : kNamespaces) {
    process.namespaces[kind] = read_symlink(proc_path(process.pid, "ns/") + kind);
  }
  const std::string cgroups = read_text(proc_path(process.pid, "cgroup"));
  for (std::string_view line : split(cgroups, '\n')) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (second != std::string_view::npos) {
      process.cgroups.emplace(line.substr(first + 1, second - first - 1), line.substr(second + 1));
    }
  }
  const std::string fds = proc_path(process.pid, "fd");
  for_each_number(fds, [&](int number) {
    OpenFile file{number, read_symlink(fds + "/" + std::to_string(number))};
    if (!file.target.empty()) {
      process.files.push_back(std::move(file));
    }
  });
}

// A sign that holds whatever the process descends from: it uses one of our directories.
std::string lasting_sign(const Process& process, const CensusScope& scope) {
  if (lies_below(process.working_dir, scope.dirs)) {
    return "works in " + process.working_dir;
  }
  for (const OpenFile& file : process.files) {
    if (lies_below(file.target, scope.dirs)) {
      return "has " + file.target + " open";
    }
  }
  for (const std::filesystem::path& dir : scope.dirs) {
    if (process.command.find(dir.native()) != std::string::npos) {
      return "names " + dir.native() + " on its command line";
    }
  }
  return "";
}

// A sign that other users of this machine may carry too: their containers have namespaces of their
// own as ours do. It counts only for orphans that init or a subreaper inherited.
std::string passing_sign(const Process& process, const Process& self, const Process* init,
                         const Process* daemon) {
  for (const char* kind : kNamespaces) {
    const std::string& theirs = process.namespaces.at(kind);
    // The test itself may run in a mount namespace of its own: the machine's are nobody's own.
    const bool machines_own = init != nullptr && theirs == init->namespaces.at(kind);
    if (!theirs.empty() && !machines_own && theirs != self.namespaces.at(kind)) {
      return "has a " + std::string(kind) + " namespace of its own";
    }
  }
  if (daemon != nullptr && !daemon->executable.empty() &&
      process.executable == daemon->executable) {
    return "runs the daemon's executable";
  }
  return "";
}

}  // namespace

std::string Process::identity() const {
  return std::to_string(pid) + ":" + std::to_string(start_time);
}

std::string Process::words() const {
  return std::to_string(pid) + " (" + (command.empty() ? name : command.substr(0, 80)) + ")";
}

ProcessTable::ProcessTable(const CensusScope& scope)
    : daemon_(scope.daemon), keeper_(scope.keeper), containerd_(scope.containerd) {
  principals_.insert(::getpid());
  principals_.insert(scope.roots.begin(), scope.roots.end());
  for (const pid_t pid : {scope.daemon, scope.keeper, scope.containerd}) {
    if (pid != 0) {
      principals_.insert(pid);
    }
  }
  for_each_number("/proc", [this](int pid) {
    Process process;
    process.pid = pid;
    if (read_stat(process)) {
      read_details(process);
      all_.emplace(pid, std::move(process));
    }
  });
  self_ = all_[::getpid()];
  for (auto& [pid, process] : all_) {
    judge(process, scope);
    for (const OpenFile& file : process.files) {
      if (file.target.starts_with("socket:")) {
        socket_holders_.emplace(file.target, pid);
      }
    }
  }
}

const Process* ProcessTable::find(pid_t pid) const {
  const auto found = all_.find(pid);
  return found == all_.end() ? nullptr : &found->second;
}

std::string ProcessTable::role(pid_t pid) const {
  if (pid == daemon_) {
    return "daemon";
  }
  if (pid == keeper_) {
    return "keeper";
  }
  if (pid == containerd_) {
    return "containerd";
  }
  if (pid == self_.pid) {
    return "the test";
  }
  const Process* process = find(pid);
  return std::to_string(pid) + (process == nullptr ? "" : " (" + process->name + ")");
}

std::vector<pid_t> ProcessTable::namespace_witnesses() const {
  std::vector<pid_t> witnesses = {self_.pid};
  for (const pid_t pid : {daemon_, containerd_}) {
    if (pid != 0 && find(pid) != nullptr) {
      witnesses.push_back(pid);
    }
  }
  return witnesses;
}

bool ProcessTable::descends_from_principal(const Process& process) const {
  for (const Process* parent = find(process.parent); parent != nullptr;
       parent = find(parent->parent)) {
    if (is_principal(parent->pid)) {
      return true;
    }
  }
  return false;
}

const Process& ProcessTable::below_init(const Process& process) const {
  const Process* top = &process;
  while (top->parent > 1) {
    const Process* parent = find(top->parent);
    if (parent == nullptr) {
      break;
    }
    top = parent;
  }
  return *top;
}

void ProcessTable::judge(Process& process, const CensusScope& scope) const {
  if (is_principal(process.pid) || descends_from_principal(process)) {
    process.standing = CensusStanding::kOurs;
    return;
  }
  process.sign = lasting_sign(process, scope);
  if (!process.sign.empty()) {
    process.standing = CensusStanding::kAdrift;
    return;
  }
  // A zombie has neither namespaces nor fds any more. One that init has inherited may be ours.
  process.sign = process.state == 'Z' && process.parent == 1
                     ? "is not reaped by init"
                     : passing_sign(process, self_, find(1), find(scope.daemon));
  if (!process.sign.empty()) {
    process.standing = CensusStanding::kAdrift;
    process.origin = below_init(process).identity();
  }
}

void add_processes(const ProcessTable& processes, Items& items) {
  for (const auto& [pid, process] : processes.all()) {
    if (processes.is_principal(pid) && process.state != 'Z') {
      continue;
    }
    CensusItem item;
    item.kind = process.state == 'Z' ? "zombie" : "process";
    item.key = process.identity();
    item.words = process.words() + " parent " + processes.role(process.parent);
    if (!process.sign.empty()) {
      item.words += ", " + process.sign;
    }
    item.standing = process.standing;
    item.origin = process.origin;
    items.push_back(std::move(item));
  }
}

}  // namespace kuasar::test::census
