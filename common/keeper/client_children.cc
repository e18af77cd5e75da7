// The processes of the keeper, as the client knows them.

#include <fcntl.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <filesystem>

#include "base/files.h"
#include "base/log.h"
#include "keeper/client.h"
#include "os/pidfd.h"
#include "os/process_usage.h"
#include "os/spawn.h"

namespace kuasar::keeper {
namespace {

namespace fs = std::filesystem;

std::string proc_file(pid_t pid, const char* name) {
  return read_file("/proc/" + std::to_string(pid) + "/" + name).value_or("");
}

// True when the zero-separated `list` has exactly this entry.
bool has_entry(const std::string& list, const std::string& entry) {
  return ('\0' + list).find('\0' + entry + '\0') != std::string::npos;
}

pid_t parent_of(pid_t pid) {
  const std::string stat = proc_file(pid, "stat");
  const std::size_t at = stat.rfind(") ");
  if (at == std::string::npos || at + 4 > stat.size()) return -1;
  pid_t parent = -1;
  std::from_chars(stat.data() + at + 4, stat.data() + stat.size(), parent);
  return parent;
}

// Now, as the start times of processes are counted (proc(5), /proc/PID/stat field 22).
unsigned long long boot_ticks() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  const auto per_second = static_cast<unsigned long long>(::sysconf(_SC_CLK_TCK));
  return static_cast<unsigned long long>(now.tv_sec) * per_second +
         static_cast<unsigned long long>(now.tv_nsec) * per_second / 1000000000;
}

os::ExitStatus exit_status(const wire::Info& info) {
  os::ExitStatus status;
  status.known = (info.flags & wire::kKnown) != 0;
  status.code = status.known ? info.code : 255;
  status.at = std::chrono::system_clock::time_point(
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::nanoseconds(info.ended_at_ns)));
  return status;
}

Result<SpawnArguments> arguments_of(const std::string& key, const os::ProcessSpec& spec) {
  if (spec.argv.empty()) return fail(Code::kInvalidArgument, "a process needs an argv");
  if (spec.fds.size() > wire::kMaxFds) {
    return fail(Code::kInternal, "too many descriptors for a child");
  }
  SpawnArguments arguments;
  TRY(arguments.program, os::find_program(spec.program.empty() ? spec.argv[0] : spec.program));
  arguments.cwd = spec.cwd;
  arguments.argv = spec.argv;
  arguments.env = spec.env;
  arguments.env.push_back(wire::kKeyVariable + key);
  wire::Spawn& fixed = arguments.fixed;
  if (spec.new_pid_namespace) fixed.flags |= wire::kNewPidNamespace;
  if (spec.new_mount_namespace) fixed.flags |= wire::kNewMountNamespace;
  if (spec.leaves_orphans) fixed.flags |= wire::kLeavesOrphans;
  // Of ours, not of the keeper's: it has raised its own.
  rlimit limit{};
  if (const rlimit* started = os::started_file_limit()) {
    limit = *started;
  } else if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return fail_errno("getrlimit", "RLIMIT_NOFILE");
  }
  fixed.file_limit_soft = limit.rlim_cur;
  fixed.file_limit_hard = limit.rlim_max;
  fixed.fd_count = static_cast<std::uint32_t>(spec.fds.size());
  for (std::size_t i = 0; i < spec.fds.size(); ++i) fixed.child_fds[i] = spec.fds[i].child_fd;
  return arguments;
}

}  // namespace

void KeeperClient::take_child(const std::string& key, Incoming& message, UniqueFd pidfd) {
  Child& child = children_[key];
  message.read(child.info);
  child.pid = child.info.pid;
  child.pidfd = std::move(pidfd);
}

Result<os::Process> KeeperClient::find(const std::string& key) {
  const auto found = children_.find(key);
  if (found == children_.end()) return fail(Code::kNotFound, "no process is named {}", key);
  found->second.unclaimed = false;
  UniqueFd pidfd(::fcntl(found->second.pidfd.get(), F_DUPFD_CLOEXEC, 3));
  if (!pidfd) return fail_errno("duplicate the pidfd of", key);
  return os::Process{key, found->second.pid, std::move(pidfd)};
}

// A keeper was killed between its fork and its answer, perhaps. Its child carries the key in its
// environment, and so do the child's own children.
std::optional<pid_t> KeeperClient::spawned_unanswered(const std::string& key,
                                                      unsigned long long since) const {
  const std::string variable = wire::kKeyVariable + key;
  const std::string keeper("kuasar-keeper\0--listen\0", 23);
  const auto carries = [&](pid_t pid) { return has_entry(proc_file(pid, "environ"), variable); };
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  for (;;) {
    // Until it executes, the child looks like the old keeper; while it or a later program of its
    // executes, it has a program but no memory to read yet (kernel threads and zombies have no
    // program). The arguments are read before the environment, so that no moment is missed.
    bool undecided = false;
    for (const pid_t pid : os::all_pids()) {
      if (pid == keeper_pid_) continue;
      const std::string arguments = proc_file(pid, "cmdline");
      const std::string environment = proc_file(pid, "environ");
      if (has_entry(environment, variable) && !carries(parent_of(pid))) return pid;
      std::error_code ec;
      const bool executes = (arguments.empty() || environment.empty()) &&
                            os::process_start_time(pid).value_or(0) >= since &&
                            !fs::read_symlink("/proc/" + std::to_string(pid) + "/exe", ec).empty();
      undecided = undecided || executes ||
                  (arguments.starts_with(keeper) && has_entry(arguments, options_.socket));
    }
    if (!undecided || std::chrono::steady_clock::now() >= deadline) return std::nullopt;
    ::poll(nullptr, 0, 2);
  }
}

Result<os::Process> KeeperClient::spawn(const std::string& key, const os::ProcessSpec& spec) {
  if (children_.contains(key)) return find(key);
  if (!wire::valid_name(key)) {
    return fail(Code::kInvalidArgument, "no process can be named \"{}\"", key);
  }
  TRY(SpawnArguments arguments, arguments_of(key, spec));
  const std::string program = arguments.program;
  TRY(const std::string body, encode_spawn(std::move(arguments)));
  std::vector<int> fds;
  for (const os::FdMapping& fd : spec.fds) fds.push_back(fd.parent_fd);
  const auto once = [&] { return try_call(wire::kSpawn, key, body, fds, std::chrono::seconds(5)); };
  const unsigned long long since = boot_ticks();
  std::optional<Incoming> answer = once();
  if (!answer) {
    CHECK_OK(restore());
    if (const std::optional<pid_t> pid = spawned_unanswered(key, since)) {
      log::warning({}, "the keeper died while it started {}, which runs as pid {}", key, *pid);
      TRY(os::Process process, adopt(key, *pid));
      if (spec.leaves_orphans) children_[key].info.flags |= wire::kLeavesOrphans;
      return process;
    }
    answer = once();
  }
  if (!answer) return fail(Code::kUnavailable, "the keeper died twice when it started {}", program);
  if (answer->header.error != 0) {
    return fail(Error::from_errno_value(answer->header.error, answer->body, program));
  }
  if (answer->fds.size() != 1) {
    return fail(Code::kResourceExhausted, "{} runs, but its pidfd did not arrive", program);
  }
  UniqueFd pidfd = std::move(answer->fds[0]);
  take_child(key, *answer, std::move(pidfd));
  return find(key);
}

Result<os::Process> KeeperClient::adopt(const std::string& key, pid_t pid) {
  if (children_.contains(key)) return find(key);
  TRY(UniqueFd pidfd, os::pidfd_open(pid));
  wire::Info info{};
  info.pid = pid;
  const int sent = pidfd.get();
  TRY(const Incoming answer, call(wire::kAdopt, key, bytes_of(info), std::span(&sent, 1)));
  Child& child = children_[key];
  answer.read(child.info);
  child.pid = pid;
  child.pidfd = std::move(pidfd);
  return find(key);
}

Result<os::ExitStatus> KeeperClient::status(const std::string& key) {
  const auto known = children_.find(key);
  if (known == children_.end()) return fail(Code::kNotFound, "no process is named {}", key);
  if ((known->second.info.flags & wire::kEnded) == 0) {
    TRY(const Incoming answer, call(wire::kStatus, key));
    const auto again = children_.find(key);
    if (again == children_.end() || !answer.read(again->second.info)) {
      return fail(Code::kInternal, "the keeper's answer about {} is malformed", key);
    }
    if ((again->second.info.flags & wire::kEnded) == 0) {
      return fail(Code::kUnavailable, "{} runs", key);
    }
    return exit_status(again->second.info);
  }
  return exit_status(known->second.info);
}

void KeeperClient::acknowledge(const std::string& key, pid_t pid) {
  const auto found = children_.find(key);
  if (found == children_.end() || found->second.pid != pid) return;
  if (!os::pidfd_exited(found->second.pidfd.get())) return;
  const Result<Incoming> answer = call(wire::kAck, key);
  if (answer || answer.error().code == Code::kNotFound) {
    children_.erase(key);
  } else {
    log::error({}, "acknowledge {}: {}", key, answer.error().message);
  }
}

Result<> KeeperClient::reap(pid_t pid) {
  TRY(const UniqueFd pidfd, os::pidfd_open(pid));
  // Of a process whose first thread has ended, /proc says as much.
  if (!os::pidfd_exited(pidfd.get())) return fail(Code::kUnavailable, "{} runs", pid);
  const std::string key = "stray/" + std::to_string(pid);
  CHECK_OK(adopt(key, pid));
  acknowledge(key, pid);
  return {};
}

}  // namespace kuasar::keeper
