#include "sandbox/pod_helper.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <charconv>
#include <string_view>
#include <utility>

#include "base/files.h"
#include "os/namespaces.h"
#include "os/pidfd.h"

namespace kuasar::sandbox {
namespace {

constexpr int kAnswerTimeoutMs = 5000;

// Descriptors of the helper, as its contract numbers them.
constexpr int kReadyFd = 3;
constexpr int kGoFd = 4;
constexpr int kUserFd = 5;

struct Pipe {
  UniqueFd reader;
  UniqueFd writer;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2");
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Result<UniqueFd> open_namespace(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path);
  return fd;
}

// What it answers next; blocking.
Result<std::string> read_answer(int fd) {
  pollfd entry{fd, POLLIN, 0};
  if (::poll(&entry, 1, kAnswerTimeoutMs) != 1) {
    return fail(Code::kDeadlineExceeded, "kuasar-pid-init is not ready after {} ms",
                kAnswerTimeoutMs);
  }
  char text[256];
  const ssize_t n = ::read(fd, text, sizeof text);
  if (n <= 0) return fail(Code::kInternal, "kuasar-pid-init: it ended before it was ready");
  return std::string(text, static_cast<std::size_t>(n));
}

Result<> expect(int fd, std::string_view wanted) {
  TRY(const std::string answer, read_answer(fd));
  if (answer == wanted) return {};
  return fail(Code::kInternal, "kuasar-pid-init: {}", answer);
}

Result<> go_on(int fd) {
  if (::write(fd, "g", 1) != 1) return fail_errno("write", "to kuasar-pid-init");
  return {};
}

// The answers "P<pid>\n", from a helper that has forked.
Result<pid_t> read_pid(int fd) {
  TRY(const std::string answer, read_answer(fd));
  pid_t pid = 0;
  const char* end = answer.data() + answer.size() - 1;
  const bool whole = answer.front() == 'P' && answer.back() == '\n' &&
                     std::from_chars(answer.data() + 1, end, pid).ptr == end;
  if (!whole || pid <= 0) return fail(Code::kInternal, "kuasar-pid-init: {}", answer);
  return pid;
}

Task<> end_process(os::Spawner& spawner, const os::Process& process) {
  (void)os::pidfd_signal(process.pidfd.get(), 9);
  co_await spawner.wait(process);
  spawner.acknowledge(process);
}

std::string proc_file(pid_t pid, std::string_view name) {
  return fmt::format("/proc/{}/{}", pid, name);
}

Result<> write_map(const std::string& path, const std::string& line) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path);
  if (::write(fd.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return fail_errno("write", fmt::format("\"{}\" to {}", line, path));
  }
  return {};
}

Result<IdRange> read_map(const std::string& path) {
  TRY(const std::string text, read_file(path));
  std::uint32_t numbers[3] = {};
  std::size_t count = 0;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (count < 3) {
    while (at < end && *at == ' ') ++at;
    const auto parsed = std::from_chars(at, end, numbers[count]);
    if (parsed.ec != std::errc{}) break;
    at = parsed.ptr;
    ++count;
  }
  if (count != 3 || numbers[0] != 0 || std::string_view(at, text.data() + text.size()) != "\n") {
    return fail(Code::kFailedPrecondition, "{}: \"{}\" is not one mapping from id 0 on", path,
                text);
  }
  return IdRange{numbers[1], numbers[2]};
}

// The helper is in the pod's user namespace: are its maps those that the pod asks for?
Result<> check_maps(pid_t pid, const PodUserNamespace& wanted) {
  TRY(const IdRange uids, read_map(proc_file(pid, "uid_map")));
  TRY(const IdRange gids, read_map(proc_file(pid, "gid_map")));
  if (uids == wanted.uids && gids == wanted.gids) return {};
  return fail(Code::kFailedPrecondition,
              "the user namespace of the pod's network namespace maps users {} and groups {}, the "
              "pod asks for {} and {}",
              uids.option(), gids.option(), wanted.uids.option(), wanted.gids.option());
}

struct Running {
  os::Process process;
  UniqueFd ready;
  UniqueFd go;
};

// In the pool: the conversation with the helper, up to the pins.
Result<> make_and_pin(const Running& running, const UserNamespacePlan& plan) {
  const pid_t pid = running.process.pid;
  if (plan.netns_path.empty()) {
    CHECK_OK(expect(running.ready.get(), "U"));
    CHECK_OK(write_map(proc_file(pid, "uid_map"), plan.maps.uids.line()));
    CHECK_OK(write_map(proc_file(pid, "gid_map"), plan.maps.gids.line()));
    CHECK_OK(go_on(running.go.get()));
  }
  CHECK_OK(expect(running.ready.get(), "R"));
  CHECK_OK(check_maps(pid, plan.maps));
  const std::pair<const char*, const std::string&> pins[] = {
      {"user", plan.user_pin}, {"ipc", plan.ipc_pin}, {"uts", plan.uts_pin}};
  for (const auto& [kind, pin] : pins) {
    if (!pin.empty()) CHECK_OK(os::pin_process_namespace(pid, kind, pin));
  }
  return {};
}

Task<Result<Running>> start_helper(PodHelper helper, std::string key, os::ProcessSpec spec,
                                   std::vector<UniqueFd> namespaces, int first_fd) {
  CO_TRY(Pipe ready, make_pipe());
  CO_TRY(Pipe go, make_pipe());
  spec.program = helper.program;
  spec.fds.push_back({ready.writer.get(), kReadyFd});
  if (first_fd > kGoFd) spec.fds.push_back({go.reader.get(), kGoFd});
  for (const UniqueFd& fd : namespaces) spec.fds.push_back({fd.get(), first_fd++});
  CO_TRY(os::Process process, co_await helper.spawner.spawn(std::move(key), std::move(spec)));
  co_return Running{std::move(process), std::move(ready.reader), std::move(go.writer)};
}

// The helper with `role` "user" has forked the init; names that, and lets it go on.
Task<Result<>> adopt_init(PodHelper helper, std::string key, Running& running) {
  auto await_pid = [fd = running.ready.get()] { return read_pid(fd); };
  const Result<pid_t> pid = co_await helper.pool.run(std::move(await_pid));
  if (!pid) {
    co_await end_process(helper.spawner, running.process);
    co_return fail(pid.error());
  }
  // Its end makes the init ours. An init that is not let go ends by itself.
  co_await helper.spawner.wait(running.process);
  Result<os::Process> init = co_await helper.spawner.adopt(std::move(key), *pid);
  helper.spawner.acknowledge(running.process);
  CO_TRY(running.process, std::move(init));
  Result<> went = go_on(running.go.get());
  if (!went) co_await end_process(helper.spawner, running.process);
  co_return went;
}

}  // namespace

Task<Result<>> make_user_namespaces(PodHelper helper, UserNamespacePlan plan) {
  std::vector<UniqueFd> user;
  if (!plan.netns_path.empty()) {
    CO_TRY(UniqueFd owner, os::open_owning_user_namespace(plan.netns_path));
    user.push_back(std::move(owner));
  }
  std::string kinds = "-";
  if (!plan.ipc_pin.empty()) kinds += 'i';
  if (!plan.uts_pin.empty()) kinds += 'u';
  os::ProcessSpec spec;
  spec.argv = {"kuasar-pid-init", kinds, user.empty() ? "new" : "join"};
  CO_TRY(const Running running,
         co_await start_helper(helper, plan.key, std::move(spec), std::move(user), kUserFd));
  auto make = [&running, &plan] { return make_and_pin(running, plan); };
  Result<> made = co_await helper.pool.run(std::move(make));
  co_await end_process(helper.spawner, running.process);
  if (!made) co_return fail(std::move(made).error().context("user namespace"));
  co_return made;
}

Task<Result<os::Process>> start_pid_init(PodHelper helper, PidInitPlan plan) {
  const bool in_user_namespace = !plan.user_pin.empty();
  os::ProcessSpec spec;
  spec.argv = {"kuasar-pid-init", std::to_string(plan.namespaces.size())};
  spec.new_mount_namespace = true;
  spec.new_pid_namespace = !in_user_namespace;
  std::vector<UniqueFd> opened;
  if (in_user_namespace) {
    spec.argv.emplace_back("user");
    spec.leaves_orphans = true;
    CO_TRY(UniqueFd user, open_namespace(plan.user_pin));
    opened.push_back(std::move(user));
  }
  for (const std::string& path : plan.namespaces) {
    CO_TRY(UniqueFd fd, open_namespace(path));
    opened.push_back(std::move(fd));
  }
  const std::string first_key = in_user_namespace ? plan.key + "-maker" : plan.key;
  const int first_fd = in_user_namespace ? kUserFd : kGoFd;
  CO_TRY(Running running,
         co_await start_helper(helper, first_key, std::move(spec), std::move(opened), first_fd));
  if (in_user_namespace) CO_CHECK(co_await adopt_init(helper, plan.key, running));
  auto await_ready = [fd = running.ready.get()] { return expect(fd, "R"); };
  if (Result<> ready = co_await helper.pool.run(std::move(await_ready)); !ready) {
    co_await end_process(helper.spawner, running.process);
    co_return fail(std::move(ready).error());
  }
  co_return std::move(running.process);
}

}  // namespace kuasar::sandbox
