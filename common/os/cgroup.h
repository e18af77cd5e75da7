#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace kuasar::os {

/// One line of /proc/PID/cgroup (cgroups(7)): controllers is empty for v2.
struct CgroupMembership {
  std::string controllers;
  std::string path;
};
std::vector<CgroupMembership> parse_proc_cgroup(std::string_view text);

/// One mounted hierarchy, from mountinfo (proc(5)).
struct CgroupHierarchy {
  std::string mount_point;
  /// Root of the mount within the hierarchy, "/" on a host.
  std::string root;
  /// Super options for v1 ("memory", "name=systemd"), empty for v2.
  std::vector<std::string> controllers;
  bool v2 = false;
};
std::vector<CgroupHierarchy> parse_cgroup_mounts(std::string_view mountinfo);

/// Joins the two: absolute directories, one per hierarchy. Pure.
std::vector<std::string> join_cgroups(const std::vector<CgroupHierarchy>& hierarchies,
                                      const std::vector<CgroupMembership>& memberships);

/// The directories of all cgroups that a process is a member of and neither this process nor its
/// parent, the keeper, is (nor below it): those that its OCI runtime made for it. Never a
/// hierarchy's root, nor a unit of ours that the runtime left it in.
Result<std::vector<std::string>> own_cgroups_of(pid_t pid);

/// The directories of `path`, a cgroup path such as "/kubepods/pod1", and of its parents, in every
/// mounted hierarchy, parents first; whether or not they are there. kInvalidArgument for a path
/// that is relative to anything or leads out. A systemd slice ("x.slice") is systemd's to make:
/// empty.
Result<std::vector<std::string>> cgroups_down_to(const std::string& path);
/// Those that are not there: what has to be made, and taken away again by whoever makes it.
Result<std::vector<std::string>> missing_cgroups(const std::string& path);
/// The path of a systemd slice given by name: "a-b.slice" is "/a.slice/a-b.slice"
/// (systemd.slice(5)). Any other path comes back as it is. Pure.
std::string expand_slice(const std::string& name);

/// The directories that exist of a cgroup path, which may be the name of a slice, one per
/// hierarchy. kInvalidArgument as above.
Result<std::vector<std::string>> cgroups_at(const std::string& path);

/// Makes them; an existing one is no error.
Result<> make_cgroups(const std::vector<std::string>& dirs);

/// Where cgroup `name` below `parent` is, in every mounted hierarchy. Empty when the parent is a
/// systemd slice: what is in it is systemd's to make.
std::vector<std::string> cgroups_below(const std::string& parent, const std::string& name);
/// Makes them and moves a process into each; where that is refused (a cpuset without CPUs) it stays
/// where it was, and nothing is left.
void enter_cgroups(pid_t pid, const std::vector<std::string>& dirs);

/// Makes the cgroup of a container, a cgroup path such as "/kubepods/pod1/c1", in every hierarchy
/// that allows it, and what limits need to be written there: its parents pass their controllers on
/// (v2), a cpuset has its parent's CPUs and memory nodes (v1). Returns its directories.
/// kInvalidArgument as missing_cgroups(). With `of_systemd` the cgroup is a unit's: what systemd
/// manages is there, and its parents are systemd's alone.
Result<std::vector<std::string>> make_container_cgroups(const std::string& path,
                                                        bool of_systemd = false);
/// Where that makes them, perhaps not all of them there. Empty for an empty path.
Result<std::vector<std::string>> container_cgroups(const std::string& path);

/// Pays for a move between cgroups that somebody else is about to make. The first for a while waits
/// some 10 ms for a grace period of RCU (rcu_sync_enter() below cgroup_procs_write_start(), seen on
/// Linux 6.18); those that come within another one do not. So this moves the calling thread to
/// where it is, while the OCI runtime gets ready to move its process. Blocks that long, cannot
/// fail, and does nothing while another thread is at it. For v1 alone: on v2 OCI runtimes may clone
/// into the cgroup (clone(2): CLONE_INTO_CGROUP, Linux 5.7), which would wait for this instead.
void prepare_cgroup_move();

/// Whether a process, running or ended and not reaped yet, is in one of the cgroups or below one.
bool in_cgroups(pid_t pid, const std::vector<std::string>& dirs);

/// Whether a child of the process is in another cgroup than the process itself: the child of an OCI
/// runtime that is in its container's cgroup already. Also false when the kernel does not list
/// children (CONFIG_PROC_CHILDREN) or when the process has ended. The caller has not reaped `pid`.
bool has_child_in_other_cgroup(pid_t pid);

/// Every process of the cgroups and of those below them, each once, ascending.
std::vector<pid_t> cgroup_pids(const std::vector<std::string>& dirs);

/// Kills all processes of a container, also of one that is frozen: cgroup.kill (v2, Linux 5.14),
/// else freeze, signal each, thaw (a process that forks meanwhile is met again, because the freezer
/// holds it still), else signal until none is left. Blocking, bounded by about a second. Nothing
/// there: success. Leaves it thawed.
Result<> kill_cgroup(const std::vector<std::string>& dirs);

/// Sends a signal to every process of the cgroups but `except`. Each is signalled by its pidfd, and
/// only while it is a member: a number that has been used again meanwhile is nobody of these.
void signal_cgroup(const std::vector<std::string>& dirs, int signal, pid_t except = 0);

/// Takes away what make_cgroups() made, last first; one that others use by now stays.
void remove_empty_cgroups(const std::vector<std::string>& dirs);
/// Removes cgroups and all below them, children first; best effort: one with processes stays. Waits
/// up to five seconds in all for the end of processes that have been killed. Blocking.
void remove_cgroups(const std::vector<std::string>& dirs);

}  // namespace kuasar::os
