#include "oci/runtime.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "base/failpoint.h"
#include "base/files.h"
#include "base/ids.h"
#include "base/log.h"
#include "oci/runtime_log.h"
#include "os/cgroup.h"
#include "os/pidfd.h"
#include "os/spawn.h"

namespace kuasar::oci {
namespace {

// How often it is looked whether a runtime has got as far as the container's cgroup (a create of
// runc 1.1 needs some 10 ms of CPU for that), and the longest that it may keep others out.
constexpr std::chrono::milliseconds kPassLook{10};
constexpr std::chrono::seconds kLongestPass{1};

constexpr std::string_view kDefaultPath =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

// A runtime that runs, shared with the handler of its timer, which may come late.
struct Child {
  os::Process process;
  bool ended = false;
  bool timed_out = false;
};

std::string in_words(std::chrono::milliseconds time) {
  if (time.count() % 1000 == 0) return fmt::format("{} s", time.count() / 1000);
  return fmt::format("{} ms", time.count());
}

// Nothing else of the daemon's environment: NOTIFY_SOCKET, LISTEN_FDS and XDG_RUNTIME_DIR mean
// something to runtimes.
std::vector<std::string> environment() {
  const char* path = std::getenv("PATH");
  return {fmt::format("PATH={}", path != nullptr ? std::string_view(path) : kDefaultPath)};
}

// Ends when the child has ended; it is killed when that takes longer than `timeout`.
Task<os::ExitStatus> wait_or_kill(os::Spawner& spawner, std::shared_ptr<Child> child,
                                  std::chrono::milliseconds timeout) {
  asio::steady_timer deadline(co_await asio::this_coro::executor, timeout);
  deadline.async_wait([child](const boost::system::error_code& ec) {
    if (ec || child->ended) return;
    child->timed_out = true;
    const Result<> killed = os::pidfd_signal(child->process.pidfd.get(), SIGKILL);
    if (!killed) log::warning({}, "{}: {}", child->process.key, killed.error().message);
  });
  os::ExitStatus status = co_await spawner.wait(child->process);
  while (!status.known && !os::pidfd_exited(child->process.pidfd.get())) {
    // Our own cancellation cut the wait; the pause keeps a wait that cannot work from spinning.
    co_await sleep_for(std::chrono::milliseconds(10));
    status = co_await spawner.wait(child->process);
  }
  child->ended = true;
  deadline.cancel();
  spawner.acknowledge(child->process);
  co_return status;
}

// Gives a run's pass back before the run has ended.
class EarlyLeave : public std::enable_shared_from_this<EarlyLeave> {
 public:
  /// Ends the watch; the pass goes back.
  struct Guard {
    std::shared_ptr<EarlyLeave> early;
    ~Guard() { early->leave(); }
  };

  EarlyLeave(const FairGate& gate, FairGate::Pass pass) : gate_(gate), pass_(std::move(pass)) {}

  /// `runtime` is not reaped before leave().
  void watch(const asio::any_io_executor& executor, pid_t runtime) {
    runtime_ = runtime;
    timer_.emplace(executor);
    until_ = std::chrono::steady_clock::now() + kLongestPass;
    look_later();
  }
  void leave() {
    if (timer_) timer_->cancel();
    runtime_ = -1;
    pass_.give_back();
  }

 private:
  void look_later() {
    timer_->expires_after(kPassLook);
    timer_->async_wait([self = shared_from_this()](const boost::system::error_code& ec) {
      if (!ec && self->runtime_ > 0) self->look();
    });
  }
  void look() {
    // Nobody waits: nothing is won by looking into /proc.
    if (gate_.waiting() > 0 &&
        (std::chrono::steady_clock::now() >= until_ || os::has_child_in_other_cgroup(runtime_))) {
      return leave();
    }
    look_later();
  }

  const FairGate& gate_;
  FairGate::Pass pass_;
  pid_t runtime_ = -1;
  std::optional<asio::steady_timer> timer_;
  std::chrono::steady_clock::time_point until_;
};

Result<UniqueFd> begin_log(const std::string& path) {
  UniqueFd fd(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return fail_errno("open", path);
  return fd;
}

// What a runtime that ended without success tells, or what can be told about it.
Error failure(const std::string& runtime, const std::string& log_file,
              const os::ExitStatus& status) {
  const std::string log = read_log_tail(log_file);
  std::string message = last_error_message(log);
  if (!message.empty()) {
    // runc begins most of its messages with its own name.
    if (!message.starts_with(runtime)) message.insert(0, runtime + ": ");
    return Error{Code::kUnknown, 0, std::move(message)};
  }
  std::string ending = fmt::format("ended with exit code {}", status.code);
  if (status.code > 128) ending = fmt::format("was killed by signal {}", status.code - 128);
  if (!status.known) ending = "ended, its exit code is lost";
  const std::string words = last_words(log);
  if (words.empty()) {
    return Error::make(Code::kUnknown,
                       "{} {} and wrote nothing into its log; check that it is an OCI runtime and "
                       "see the kernel log",
                       runtime, ending);
  }
  return Error::make(Code::kUnknown, "{} {}; its last words were: {}", runtime, ending, words);
}

Error late(const std::string& runtime, const std::string& log_file,
           std::chrono::milliseconds timeout) {
  const std::string log = read_log_tail(log_file);
  std::string words = last_error_message(log);
  if (words.empty()) words = last_words(log);
  return Error::make(Code::kDeadlineExceeded, "{} did not end within {} and was killed{}{}",
                     runtime, in_words(timeout),
                     words.empty() ? "" : "; its last words were: ", words);
}

Result<pid_t> read_pid(const std::string& runtime, const std::string& path) {
  Result<std::string> text = read_file(path, 64);
  if (!text) {
    return fail(Error::make(Code::kInternal, "{} reported success without a pid file: {}", runtime,
                            text.error().message));
  }
  const std::string_view digits =
      std::string_view(*text).substr(0, text->find_last_not_of(" \r\n") + 1);
  pid_t pid = -1;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), pid);
  if (parsed.ec != std::errc{} || parsed.ptr != digits.data() + digits.size() || pid <= 0) {
    return fail(Code::kInternal, "{} reported success, but its pid file {} holds \"{}\"", runtime,
                path, last_words(*text));
  }
  return pid;
}

std::string step_of(std::string_view id, std::string_view exec, std::string_view verb) {
  return fmt::format("{}/{}/{}", id, exec.empty() ? "-" : exec, verb);
}

template <typename Args>
std::vector<os::FdMapping> stdio_of(const Args& args) {
  std::vector<os::FdMapping> fds;
  const std::pair<int, int> stdio[] = {
      {args.stdin_fd, 0}, {args.stdout_fd, 1}, {args.stderr_fd, 2}};
  for (const auto& [parent_fd, child_fd] : stdio) {
    if (parent_fd >= 0) fds.push_back({parent_fd, child_fd});
  }
  return fds;
}

Error in_context(Error error, std::string_view verb) {
  return std::move(error).context("OCI runtime {} failed", verb);
}

}  // namespace

OciRuntime::OciRuntime(os::Spawner& spawner, FairGate& gate, RuntimeConfig config)
    : spawner_(spawner), gate_(gate), config_(std::move(config)) {}

std::string OciRuntime::name() const {
  return config_.binary.substr(config_.binary.rfind('/') + 1);
}

Result<GlobalFlags> OciRuntime::global_flags(const std::string& id,
                                             const std::string& log_file) const {
  CHECK_OK(validate_id("container id", id));
  if (id.starts_with('-')) {
    return fail(Code::kInvalidArgument, "container id \"{}\" begins with '-'", id);
  }
  Result<std::string> program = os::find_program(config_.binary);
  if (!program) {
    return fail(Code::kFailedPrecondition,
                "{}: install {}, or name an OCI runtime that is installed (`runtime` in this "
                "daemon's configuration, BinaryName of the runtime handler in containerd's)",
                program.error().message, name());
  }
  GlobalFlags flags;
  flags.binary = std::move(*program);
  flags.root = config_.root;
  flags.log_file = log_file;
  return flags;
}

void OciRuntime::forget(const std::string& id) {
  std::erase_if(attempts_, [&](const auto& step) { return step.first.starts_with(id + "/"); });
}

Task<Result<>> OciRuntime::run(Run run, std::string key) {
  Span queueing(run.timeline, "gate", SpanKind::kWait);
  auto early = std::make_shared<EarlyLeave>(gate_, co_await gate_.enter(run.pod));
  const EarlyLeave::Guard leaving{early};
  queueing.end();
  os::ProcessSpec spec;
  spec.argv = std::move(run.argv);
  spec.env = environment();
  spec.fds = std::move(run.fds);
  spec.leaves_orphans = true;
  Span spawning(run.timeline, "spawn the OCI runtime");
  auto process = co_await spawner_.spawn(std::move(key), std::move(spec));
  spawning.end();
  if (!process) {
    co_return fail(std::move(process).error().context(
        "cannot run {} (`runtime` in this daemon's configuration, or BinaryName of the runtime "
        "handler in containerd's)",
        name()));
  }
  early->watch(co_await asio::this_coro::executor, process->pid);
  failpoint("runtime.", run.verb, ".spawned");
  const Span running(run.timeline, "OCI runtime", SpanKind::kWait);
  Result<> done = co_await wait_for(std::move(*process), run.log_file);
  failpoint("runtime.", run.verb, ".ended");
  co_return done;
}

Task<Result<>> OciRuntime::wait_for(os::Process process, std::string log_file) {
  auto child = std::make_shared<Child>();
  child->process = std::move(process);
  const os::ExitStatus status = co_await wait_or_kill(spawner_, child, config_.timeout);
  if (status.known && status.code == 0) co_return Result<>();
  if (child->timed_out) co_return fail(late(name(), log_file, config_.timeout));
  co_return fail(failure(name(), log_file, status));
}

std::string OciRuntime::next_key(const Run& run) {
  std::string step = step_of(run.id, run.exec, run.verb);
  const int attempt = attempts_[step]++;
  return fmt::format("{}/{}", step, attempt);
}

Task<Result<>> OciRuntime::run_quietly(Run run_now) {
  std::string key = next_key(run_now);
  // What an earlier daemon began: its words are in the log already, which is not begun anew.
  Result<os::Process> begun = co_await spawner_.find(key);
  if (begun) co_return co_await wait_for(std::move(*begun), std::move(run_now.log_file));
  CO_TRY(const UniqueFd log, begin_log(run_now.log_file));
  run_now.fds = {{log.get(), 1}, {log.get(), 2}};
  co_return co_await run(std::move(run_now), std::move(key));
}

Task<Result<pid_t>> OciRuntime::create(CreateArgs args) {
  Result<GlobalFlags> flags = global_flags(args.id, args.log_file);
  if (!flags) co_return fail(in_context(std::move(flags).error(), "create"));
  flags->systemd_cgroup = args.systemd_cgroup;
  CreateFlags create;
  create.bundle = args.bundle;
  create.pid_file = args.pid_file;
  create.no_pivot = args.no_pivot;
  create.no_new_keyring = args.no_new_keyring;
  create.console_socket = args.console_socket;
  Run run_now;
  run_now.verb = "create";
  run_now.id = args.id;
  run_now.pod = args.pod;
  run_now.log_file = args.log_file;
  run_now.argv = create_argv(*flags, create, args.id);
  run_now.timeline = args.timeline;
  run_now.fds = stdio_of(args);

  if (::unlink(args.pid_file.c_str()) != 0 && errno != ENOENT) {
    co_return fail(in_context(Error::from_errno("unlink", args.pid_file), "create"));
  }
  Result<UniqueFd> log = begin_log(args.log_file);
  if (!log) co_return fail(in_context(std::move(log).error(), "create"));
  log->reset();
  std::string key = next_key(run_now);
  Result<> done = co_await run(std::move(run_now), std::move(key));
  if (!done) co_return fail(in_context(std::move(done).error(), "create"));
  Result<pid_t> pid = read_pid(name(), args.pid_file);
  if (!pid) co_return fail(in_context(std::move(pid).error(), "create"));
  co_return *pid;
}

Task<Result<pid_t>> OciRuntime::exec(ExecArgs args) {
  Result<GlobalFlags> flags = global_flags(args.id, args.log_file);
  if (!flags) co_return fail(in_context(std::move(flags).error(), "exec"));
  ExecFlags exec;
  exec.process_file = args.process_file;
  exec.pid_file = args.pid_file;
  exec.console_socket = args.console_socket;
  Run run_now;
  run_now.verb = "exec";
  run_now.id = args.id;
  run_now.pod = args.pod;
  run_now.exec = args.exec;
  run_now.log_file = args.log_file;
  run_now.argv = exec_argv(*flags, exec, args.id);
  run_now.fds = stdio_of(args);
  const std::string step = step_of(args.id, args.exec, "exec");

  if (::unlink(args.pid_file.c_str()) != 0 && errno != ENOENT) {
    co_return fail(in_context(Error::from_errno("unlink", args.pid_file), "exec"));
  }
  Result<UniqueFd> log = begin_log(args.log_file);
  if (!log) co_return fail(in_context(std::move(log).error(), "exec"));
  log->reset();
  std::string key = next_key(run_now);
  Result<> done = co_await run(std::move(run_now), std::move(key));
  // An exec is run once; its id may be used anew after its Delete.
  attempts_.erase(step);
  if (!done) co_return fail(in_context(std::move(done).error(), "exec"));
  Result<pid_t> pid = read_pid(name(), args.pid_file);
  if (!pid) co_return fail(in_context(std::move(pid).error(), "exec"));
  co_return *pid;
}

Task<Result<pid_t>> OciRuntime::resume_exec(ExecArgs args) {
  Result<os::Process> running = co_await spawner_.find(step_of(args.id, args.exec, "exec") + "/0");
  if (running) {
    Result<> done = co_await wait_for(std::move(*running), args.log_file);
    if (!done) co_return fail(in_context(std::move(done).error(), "exec"));
  }
  // It may have ended, and been acknowledged, before the daemon did.
  Result<pid_t> pid = read_pid(name(), args.pid_file);
  if (pid) co_return *pid;
  if (running) co_return fail(in_context(std::move(pid).error(), "exec"));
  co_return fail(Code::kNotFound, "exec {} was never run", args.exec);
}

Task<> OciRuntime::abandon_create(std::string id) {
  Result<os::Process> running = co_await spawner_.find(step_of(id, "", "create") + "/0");
  if (!running) co_return;
  const Result<> killed = os::pidfd_signal(running->pidfd.get(), SIGKILL);
  if (!killed && killed.error().code != Code::kNotFound) {
    log::warning({"", id}, "{}", killed.error().message);
  }
  auto child = std::make_shared<Child>();
  child->process = std::move(*running);
  co_await wait_or_kill(spawner_, child, config_.timeout);
}

Task<Result<>> OciRuntime::start(std::string id, std::string pod, std::string log_file,
                                 TimelinePtr timeline) {
  Result<GlobalFlags> flags = global_flags(id, log_file);
  if (!flags) co_return fail(in_context(std::move(flags).error(), "start"));
  Run run_now;
  run_now.verb = "start";
  run_now.argv = start_argv(*flags, id);
  run_now.timeline = std::move(timeline);
  run_now.id = std::move(id);
  run_now.pod = std::move(pod);
  run_now.log_file = std::move(log_file);
  Result<> done = co_await run_quietly(std::move(run_now));
  if (!done) co_return fail(in_context(std::move(done).error(), "start"));
  co_return Result<>();
}

Task<Result<>> OciRuntime::checkpoint(CheckpointArgs args) {
  if (Result<std::string> criu = os::find_program("criu"); !criu) {
    co_return fail(Code::kFailedPrecondition,
                   "OCI runtime checkpoint failed: {}: install criu on this machine",
                   criu.error().message);
  }
  Result<GlobalFlags> flags = global_flags(args.id, args.log_file);
  if (!flags) co_return fail(in_context(std::move(flags).error(), "checkpoint"));
  const std::string criu_log = args.flags.work_path + "/dump.log";
  Run run_now;
  run_now.verb = "checkpoint";
  run_now.argv = checkpoint_argv(*flags, args.flags, args.id);
  const std::string step = step_of(args.id, "", run_now.verb);
  if (args.written) {
    const Result<os::Process> writer = co_await spawner_.find(step + "/0");
    if (!writer) co_return Result<>();
  }
  run_now.id = std::move(args.id);
  run_now.pod = std::move(args.pod);
  run_now.log_file = std::move(args.log_file);
  Result<> done = co_await run_quietly(std::move(run_now));
  // There may be more of them: the next daemon is to find the last.
  attempts_.erase(step);
  if (done) co_return Result<>();
  Error error = in_context(std::move(done).error(), "checkpoint");
  if (const std::string words = first_criu_error(read_log_tail(criu_log)); !words.empty()) {
    error.message += "; criu: " + words;
  }
  co_return fail(std::move(error));
}

Task<Result<>> OciRuntime::remove(std::string id, std::string pod, std::string log_file,
                                  bool force) {
  // A log that cannot be written (its directory is gone, the disk is full) must not keep a
  // container alive.
  if (!begin_log(log_file)) log_file = "/dev/null";
  Result<GlobalFlags> flags = global_flags(id, log_file);
  const std::string state_dir = config_.root + "/" + id;
  Result<> done;
  if (flags) {
    Run run_now;
    run_now.verb = "delete";
    run_now.id = id;
    run_now.pod = std::move(pod);
    run_now.argv = delete_argv(*flags, id, force);
    run_now.log_file = std::move(log_file);
    done = co_await run_quietly(std::move(run_now));
  } else {
    done = fail(std::move(flags).error());
  }
  if (done) co_return done;
  // Every runtime keeps <root>/<id> for as long as it knows the container.
  struct stat st {};
  if (done.error().code != Code::kInvalidArgument && ::lstat(state_dir.c_str(), &st) != 0 &&
      errno == ENOENT) {
    co_return Result<>();
  }
  co_return fail(in_context(std::move(done).error(), "delete"));
}

}  // namespace kuasar::oci
