#include <string>

#include "support/census_parts.h"

namespace kuasar::test::census {
namespace {

// "pipe:[123]" to "pipe", "net:[4026531840]" to "net": the number is another one for every object
// of the kind. "anon_inode:[eventfd]" stays, since there the brackets hold the kind.
std::string target_kind(const std::string& target) {
  const std::size_t open = target.find(":[");
  if (target.starts_with('/') || open == std::string::npos ||
      target.find_first_not_of("0123456789]", open + 2) != std::string::npos) {
    return target;
  }
  return target.substr(0, open);
}

// Rule 3 of census.h.
bool prone_to_leak_in_containerd(const std::string& target, const CensusScope& scope) {
  // What it has closed half when a client hangs up while its exec ends waits for Go's collector.
  if (target.ends_with("-stdin (deleted)")) return false;
  const std::string kind = target_kind(target);
  static constexpr const char* kKinds[] = {
      "pipe", "pidfd", "anon_inode:[pidfd]", "net", "mnt", "pid", "ipc", "uts", "user"};
  for (const char* known : kKinds) {
    if (kind == known) {
      return true;
    }
  }
  return lies_below(target, scope.dirs);
}

// A process's own files of /proc have the same key in the next daemon.
std::string own_target(const std::string& target, pid_t pid) {
  const std::string own = "/proc/" + std::to_string(pid) + "/";
  return target.starts_with(own) ? "/proc/self/" + target.substr(own.size()) : target;
}

void add_files(const Process& process, const std::string& role, const CensusScope* filter,
               Items& items) {
  for (const OpenFile& file : process.files) {
    if (filter != nullptr && !prone_to_leak_in_containerd(file.target, *filter)) {
      continue;
    }
    CensusItem item;
    item.kind = "fd";
    item.key = role + " " + own_target(target_kind(file.target), process.pid);
    item.words = std::to_string(file.number) + " of " + role + " -> " + file.target;
    items.push_back(std::move(item));
  }
}

void add_threads(pid_t pid, Items& items) {
  const std::filesystem::path tasks = "/proc/" + std::to_string(pid) + "/task";
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(tasks, error)) {
    std::string name = read_text(entry.path() / "comm");
    if (name.empty()) {
      continue;
    }
    name.pop_back();
    CensusItem item;
    item.kind = "thread";
    item.key = name;
    item.words = entry.path().filename().string() + " (" + name + ") of daemon";
    items.push_back(std::move(item));
  }
}

}  // namespace

void add_files_and_threads(const CensusScope& scope, const ProcessTable& processes, Items& items) {
  if (const Process* daemon = processes.find(scope.daemon)) {
    add_files(*daemon, "daemon", nullptr, items);
    add_threads(scope.daemon, items);
  }
  if (const Process* keeper = processes.find(scope.keeper)) {
    add_files(*keeper, "keeper", nullptr, items);
  }
  if (const Process* containerd = processes.find(scope.containerd)) {
    add_files(*containerd, "containerd", &scope, items);
  }
}

}  // namespace kuasar::test::census
