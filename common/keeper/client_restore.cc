// How the client finds its keeper, and what it does when that has died.

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdlib>

#include "base/log.h"
#include "keeper/client.h"
#include "os/pidfd.h"
#include "os/spawn.h"

namespace kuasar::keeper {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kStartTimeout = seconds(5);
// The keeper may wait five seconds for the death of the daemon before us.
constexpr milliseconds kHelloTimeout = seconds(8);
constexpr int kRestoreAttempts = 3;

}  // namespace

Result<> KeeperClient::start_program() {
  os::ProcessSpec spec;
  spec.program = options_.program;
  spec.argv = {"kuasar-keeper", "--listen", options_.socket, "--daemonize"};
  spec.env = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
  if (const char* journal = std::getenv("JOURNAL_STREAM")) {
    spec.env.push_back(std::string("JOURNAL_STREAM=") + journal);
  }
  spec.fds = {{2, 2}};
  TRY(const os::Spawned child, os::spawn_process(spec));
  pollfd entry{child.pidfd.get(), POLLIN, 0};
  if (::poll(&entry, 1, static_cast<int>(kStartTimeout.count())) != 1) {
    (void)os::pidfd_signal(child.pidfd.get(), SIGKILL);
  }
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED);
  if (info.si_code == CLD_EXITED && info.si_status == 0) return {};
  return fail(Code::kUnavailable, "{} --listen {} ended with {}; it has said why on stderr",
              options_.program, options_.socket, info.si_status);
}

// Connects to a keeper, which is started or awaited, and greets it. A child that a killed keeper
// has forked and that has not executed yet keeps the old socket open: until then connecting
// succeeds, nobody greets back, and a new keeper believes in a live one. So everything is tried
// again.
Result<> KeeperClient::reach() {
  const auto deadline = std::chrono::steady_clock::now() + kStartTimeout;
  for (;;) {
    Result<Connection> made = Connection::open(options_.socket);
    Result<> reached;
    if (made) {
      connection_ = std::move(*made);
      ++generation_;
      reached = greet();
      if (reached || reached.error().code != Code::kAborted) return reached;
    } else {
      reached = fail(std::move(made).error());
      if (reached.error().code == Code::kInvalidArgument) return reached;
      if (!options_.program.empty()) {
        reached = start_program();
        if (reached) continue;
      }
    }
    if (std::chrono::steady_clock::now() >= deadline) return reached;
    ::poll(nullptr, 0, 5);
  }
}

Result<> KeeperClient::greet() {
  const wire::Hello hello{next_connection_};
  std::optional<Incoming> answer = try_call(wire::kHello, {}, bytes_of(hello), {}, kHelloTimeout);
  if (!answer) {
    return fail(Code::kAborted, "the keeper at {} does not greet back", options_.socket);
  }
  wire::HelloAnswer body{};
  if (answer->header.error != 0 || !answer->read(body)) {
    connection_.reset();
    return fail(Code::kUnavailable, "the keeper at {} refuses us: {}", options_.socket,
                answer->header.error != 0 ? answer->body : "its greeting is malformed");
  }
  struct stat ours {};
  if (::stat("/proc/self/ns/mnt", &ours) != 0) return fail_errno("stat", "/proc/self/ns/mnt");
  if (ours.st_dev != body.mount_device || ours.st_ino != body.mount_inode) {
    connection_.reset();
    return fail(Code::kFailedPrecondition,
                "the keeper (pid {}) is in another mount namespace than we are: start both without "
                "PrivateTmp, ProtectSystem and the like",
                body.pid);
  }
  if (!connection_->identify(body.pid)) {
    connection_.reset();
    return fail(Code::kAborted, "the keeper at {} died at once", options_.socket);
  }
  keeper_pid_ = body.pid;
  version_ = answer->name;
  protocol_ = answer->header.version;
  return {};
}

Result<> KeeperClient::restore() {
  const pid_t old = keeper_pid_;
  for (int attempt = 0; attempt < kRestoreAttempts; ++attempt) {
    CHECK_OK(reach());
    if (!hand_back()) continue;
    ++replacements_;
    log::warning({}, "the keeper {} has died; {} holds {} descriptors and {} processes now", old,
                 keeper_pid_, held_.size(), children_.size());
    return {};
  }
  return fail(Code::kUnavailable, "the keeper died {} times while it was handed what it had held",
              kRestoreAttempts);
}

bool KeeperClient::hand_back() {
  const auto done = [&](const std::string& name, const std::optional<Incoming>& answer) {
    if (answer && answer->header.error != 0) {
      log::error({}, "the new keeper does not take {}: {}", name, answer->body);
    }
    return answer.has_value();
  };
  // Names first: an accept below may add to the map.
  for (const std::string& name : held("")) {
    const Held& entry = held_.at(name);
    const int fd = entry.fd.get();
    const wire::Type type = entry.accepting ? wire::kAccept : wire::kHold;
    if (!done(name, try_call(type, name, {}, std::span(&fd, 1), seconds(5)))) return false;
  }
  for (const auto& [key, child] : children_) {
    wire::Info info{};
    info.pid = child.pid;
    info.flags = child.info.flags & wire::kLeavesOrphans;
    const int fd = child.pidfd.get();
    if (!done(key, try_call(wire::kAdopt, key, bytes_of(info), std::span(&fd, 1), seconds(5)))) {
      return false;
    }
  }
  return true;
}

Task<> KeeperClient::run() {
  for (;;) {
    if (!connection_) {
      const Result<> restored = restore();
      if (!restored) {
        log::error({}, "{}; next attempt in a second", restored.error().message);
        co_await sleep_for(seconds(1));
        const auto state = co_await asio::this_coro::cancellation_state;
        if (state.cancelled() != asio::cancellation_type::none) co_return;
        continue;
      }
    }
    const unsigned watched_generation = generation_;
    asio::posix::stream_descriptor watched(executor_,
                                           ::fcntl(connection_->fd(), F_DUPFD_CLOEXEC, 3));
    while (connection_ && watched_generation == generation_) {
      boost::system::error_code ec;
      co_await watched.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
      if (ec) co_return;
      drain();
    }
  }
}

}  // namespace kuasar::keeper
