#include "zygote.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "os/pidfd.h"
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

Result<UniqueFd> memory_file(const char* name, std::string_view bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return fail_errno("memfd_create");
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("write", name);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return fd;
}

Result<UniqueFd> plan_file(const Plan& plan) {
  return memory_file("kuasar-wasm-plan", encode(plan));
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
  if (words[0] == 'M') co_return fail(Code::kAborted, "{}: the module is another one", who);
  co_return fail(Code::kFailedPrecondition, "{}", rest);
}

Zygote::Zygote(os::Spawner& spawner, std::string key) : spawner_(spawner), key_(std::move(key)) {}

Zygote::~Zygote() {
  end();
}

bool Zygote::alive() const {
  return process_ && socket_ && !os::pidfd_exited(process_->pidfd.get());
}

Task<> Zygote::clear_away() {
  socket_.reset();
  process_.reset();
  co_await os::end_named(spawner_, key_);
}

Task<> Zygote::close() {
  const AsyncMutex::Lock lock = co_await mutex_.lock();
  co_await clear_away();
}

Task<Result<>> Zygote::ensure() {
  if (alive()) co_return Result<>();
  if (process_) log::warning({}, "{} has ended; starting another", key_);
  co_await clear_away();
  Result<Started> begun = co_await start();
  if (!begun) {
    co_await clear_away();
    Error error = std::move(begun).error();
    // Whatever it was, this container cannot have it, and others may.
    error.code = Code::kFailedPrecondition;
    co_return fail(std::move(error));
  }
  process_ = std::move(begun->process);
  socket_ = std::move(begun->socket);
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
    return fail_errno("send a request to", key_);
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
    co_return fail(Code::kUnavailable, "{} died while it made a container; try again", key_);
  }
  if (answer.pid < 0) co_return fail(Error::from_errno_value(-answer.pid, "clone", key_));
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

EngineZygote::EngineZygote(os::Spawner& spawner, EngineConfig config, std::string worker)
    : Zygote(spawner, "zygote/" + config.name),
      config_(std::move(config)),
      worker_(std::move(worker)) {}

os::ProcessSpec EngineZygote::spec(int socket) const {
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

Task<Result<Zygote::Started>> EngineZygote::start() {
  CO_TRY(SocketPair pair, make_socket_pair());
  os::ProcessSpec child = spec(pair.theirs.get());
  Result<os::Process> process = co_await spawner_.spawn(key_, std::move(child));
  pair.theirs.reset();
  if (!process) co_return fail(std::move(process).error().context("wasm engine {}", config_.name));
  const std::string who = config_.loader.empty() ? worker_ : config_.loader + " " + worker_;
  Result<std::string> words = co_await await_ready(pair.ours.get(), kLoadTimeout, who);
  if (!words) co_return fail(std::move(words).error().context("wasm engine {}", config_.name));
  stamp_ = std::move(*words);
  co_return Started{std::move(*process), std::move(pair.ours)};
}

}  // namespace kuasar::wasm
