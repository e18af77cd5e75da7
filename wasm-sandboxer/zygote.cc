#include "zygote.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "base/log.h"
#include "os/pidfd.h"
#include "os/pidfd_wait.h"
#include "os/readable.h"

namespace kuasar::wasm {
namespace {

using namespace std::chrono_literals;

// The engine and all that it links are loaded from disk, perhaps for the first time.
constexpr auto kLoadTimeout = 30s;
constexpr auto kAnswerTimeout = 10s;
constexpr auto kEndTimeout = 5s;

}  // namespace

Result<SocketPair> make_socket_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return fail_errno("socketpair");
  }
  return SocketPair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Result<UniqueFd> plan_file(const Plan& plan) {
  UniqueFd fd(::memfd_create("kuasar-wasm-plan", MFD_CLOEXEC));
  if (!fd) return fail_errno("memfd_create");
  const std::string bytes = encode(plan);
  if (::write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    return fail_errno("write", "plan");
  }
  return fd;
}

Task<Result<std::string>> await_ready(int socket, std::chrono::nanoseconds timeout,
                                      std::string who) {
  const bool said = co_await os::readable_within(socket, timeout);
  if (!said) {
    co_return fail(Code::kDeadlineExceeded, "{} says nothing for {} s", who,
                   std::chrono::duration_cast<std::chrono::seconds>(timeout).count());
  }
  char words[kMaxWords];
  const ssize_t size = ::recv(socket, words, sizeof words, MSG_DONTWAIT);
  if (size <= 0) co_return fail(Code::kUnavailable, "{} ended before it was ready", who);
  std::string rest(words + 1, static_cast<std::size_t>(size) - 1);
  if (words[0] == 'R') co_return rest;
  co_return fail(Code::kFailedPrecondition, "{}", rest);
}

Zygote::Zygote(os::Spawner& spawner, EngineConfig config, std::string worker)
    : spawner_(spawner), config_(std::move(config)), worker_(std::move(worker)) {}

Zygote::~Zygote() {
  end();
}

bool Zygote::alive() const {
  return process_ && socket_ && !os::pidfd_exited(process_->pidfd.get());
}

os::ProcessSpec Zygote::spec(int socket) const {
  os::ProcessSpec spec;
  spec.argv = {worker_, config_.name, config_.library};
  if (config_.aot) spec.argv.push_back("aot");
  if (!config_.loader.empty()) {
    spec.argv.insert(spec.argv.begin(), {config_.loader, "--library-path", config_.library_path});
  }
  // What the dynamic loader has to say is for our log.
  spec.fds = {{socket, kZygoteSocket}, {STDERR_FILENO, STDERR_FILENO}};
  spec.new_mount_namespace = true;
  return spec;
}

Task<> Zygote::clear_away() {
  socket_.reset();
  Result<os::Process> known = co_await spawner_.find(key());
  process_.reset();
  if (!known) co_return;
  (void)os::pidfd_signal(known->pidfd.get(), SIGKILL);
  const bool ended = co_await os::pidfd_wait_for(known->pidfd.get(), kEndTimeout);
  if (!ended) log::error({}, "{} (pid {}) does not end on SIGKILL", key(), known->pid);
  spawner_.acknowledge(*known);
}

Task<Result<>> Zygote::ensure() {
  if (alive()) co_return Result<>();
  if (process_) log::warning({}, "{} has ended; starting another", key());
  co_await clear_away();
  Result<> started = co_await start();
  if (!started) {
    co_await clear_away();
    Error error = std::move(started).error().context("wasm engine {}", config_.name);
    // Whatever it was, this pod cannot have the engine, and others may.
    error.code = Code::kFailedPrecondition;
    co_return fail(std::move(error));
  }
  co_return started;
}

Task<Result<>> Zygote::start() {
  CO_TRY(SocketPair pair, make_socket_pair());
  os::ProcessSpec child = spec(pair.theirs.get());
  CO_TRY(process_, co_await spawner_.spawn(key(), std::move(child)));
  socket_ = std::move(pair.ours);
  pair.theirs.reset();
  const std::string who = config_.loader.empty() ? worker_ : config_.loader + " " + worker_;
  CO_TRY(stamp_, co_await await_ready(socket_.get(), kLoadTimeout, who));
  co_return Result<>();
}

Result<> Zygote::send(const Request& request, const std::vector<UniqueFd>& fds) const {
  if (fds.size() > kMaxFds) {
    return fail(Code::kResourceExhausted, "a container with {} mounts: at most {} are possible",
                fds.size(), kMaxFds);
  }
  Request body = request;
  iovec bytes{&body, sizeof body};
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const int fd = fds[i].get();
    std::memcpy(CMSG_DATA(header) + i * sizeof fd, &fd, sizeof fd);
  }
  if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    return fail_errno("send a request to", key());
  }
  return {};
}

Task<Result<pid_t>> Zygote::make_child(Request request, const std::vector<UniqueFd>& fds) {
  const AsyncMutex::Lock lock = co_await mutex_.lock();
  CO_CHECK(co_await ensure());
  request.sequence = ++sequence_;
  CO_CHECK(send(request, fds));
  const bool answered = co_await os::readable_within(socket_.get(), kAnswerTimeout);
  Answer answer;
  const bool whole = answered && ::recv(socket_.get(), &answer, sizeof answer, MSG_DONTWAIT) ==
                                     static_cast<ssize_t>(sizeof answer);
  if (!whole || answer.sequence != request.sequence) {
    // Whatever it has made ends with its control socket.
    co_await clear_away();
    co_return fail(Code::kUnavailable, "{} died while it made a container; try again", key());
  }
  if (answer.pid < 0) co_return fail(Error::from_errno_value(-answer.pid, "clone", key()));
  co_return answer.pid;
}

void Zygote::end() {
  socket_.reset();
  if (!process_) return;
  (void)os::pidfd_signal(process_->pidfd.get(), SIGKILL);
  pollfd entry{process_->pidfd.get(), POLLIN, 0};
  (void)::poll(&entry, 1, std::chrono::milliseconds(kEndTimeout).count());
  spawner_.acknowledge(*process_);
  process_.reset();
}

}  // namespace kuasar::wasm
