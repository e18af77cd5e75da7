#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "support/census.h"

/// The collectors behind Census::take. Nothing outside census*.cc includes this.
namespace kuasar::test::census {

struct OpenFile {
  int number = 0;
  std::string target;
};

struct Process {
  pid_t pid = 0;
  pid_t parent = 0;
  char state = '?';
  std::uint64_t start_time = 0;
  std::string name;
  std::string command;
  std::string executable;
  std::string working_dir;
  /// Namespace kind ("mnt", "pid", ...) to its link ("mnt:[4026531841]").
  std::map<std::string, std::string> namespaces;
  /// Controllers as /proc/<pid>/cgroup writes them ("cpu,cpuacct", "name=systemd", "") to path.
  std::map<std::string, std::string> cgroups;
  std::vector<OpenFile> files;
  CensusStanding standing = CensusStanding::kForeign;
  /// For kAdrift: what shows that it came from us, and the identity of the process below init that
  /// it descends from, empty when the sign does not depend on it.
  std::string sign;
  std::string origin;

  /// Pids are reused; pid and start time together are not.
  std::string identity() const;
  std::string words() const;
};

/// All processes of the pid namespace, kernel threads left out, and who of them is ours.
class ProcessTable {
 public:
  explicit ProcessTable(const CensusScope& scope);

  const std::map<pid_t, Process>& all() const { return all_; }
  const Process* find(pid_t pid) const;
  /// The daemon, containerd, a root or the test itself: what hangs below these is counted, they are
  /// not.
  bool is_principal(pid_t pid) const { return principals_.contains(pid); }
  /// "daemon", "containerd", "the test", else the pid and the name.
  std::string role(pid_t pid) const;
  const Process& self() const { return self_; }
  /// The daemon's and containerd's pids as far as they live, and our own, for the questions that
  /// are asked once per namespace.
  std::vector<pid_t> namespace_witnesses() const;
  /// Targets like "socket:[123]" to the processes that hold an fd on them.
  const std::multimap<std::string, pid_t>& socket_holders() const { return socket_holders_; }

 private:
  void judge(Process& process, const CensusScope& scope) const;
  bool descends_from_principal(const Process& process) const;
  const Process& below_init(const Process& process) const;

  std::map<pid_t, Process> all_;
  std::set<pid_t> principals_;
  Process self_;
  pid_t daemon_ = 0;
  pid_t keeper_ = 0;
  pid_t containerd_ = 0;
  std::multimap<std::string, pid_t> socket_holders_;
};

using Items = std::vector<CensusItem>;

void add_processes(const ProcessTable& processes, Items& items);
void add_files_and_threads(const CensusScope& scope, const ProcessTable& processes, Items& items);
void add_mounts(const CensusScope& scope, const ProcessTable& processes, Items& items);
void add_cgroups(const ProcessTable& processes, Items& items);
void add_unix_sockets(const CensusScope& scope, const ProcessTable& processes, Items& items);
void add_links(const ProcessTable& processes, Items& items);
void add_tree(const CensusScope& scope, Items& items);
void add_netns_files(const CensusScope& scope, Items& items);

std::string read_text(const std::filesystem::path& file);
std::string read_symlink(const std::filesystem::path& link);
std::vector<std::string_view> split(std::string_view text, char separator);
std::vector<std::string_view> words_of(std::string_view line);
bool lies_below(std::string_view path, const std::vector<std::filesystem::path>& dirs);

}  // namespace kuasar::test::census
