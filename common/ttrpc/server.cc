#include "ttrpc/server.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "async/task_group.h"
#include "base/log.h"
#include "ttrpc/connection.h"
#include "ttrpc/session.h"

namespace kuasar::ttrpc {
namespace {

// Connections taken per turn of the io thread, so that a storm of them holds nobody up.
constexpr int kAcceptsPerTurn = 16;
constexpr std::chrono::milliseconds kAcceptPause{100};
// How often the handlers that outlived the grace are asked again to end.
constexpr std::chrono::milliseconds kCancelPeriod{50};
// How often it is looked whether the calls that ran have ended.
constexpr std::chrono::milliseconds kFinishPeriod{5};

Result<> check_peer(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return fail_errno("getsockopt", "SO_PEERCRED");
  }
  if (peer.uid == 0 || peer.uid == ::geteuid()) return {};
  return fail(Code::kPermissionDenied, "process {} of uid {} may not connect", peer.pid, peer.uid);
}

// True for what no waiting repairs: the descriptor is not a listening socket.
bool is_final(int accept_errno) {
  return accept_errno == EBADF || accept_errno == EINVAL || accept_errno == ENOTSOCK ||
         accept_errno == EOPNOTSUPP;
}

}  // namespace

Result<std::uint64_t> connection_id(int socket) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  if (::getsockopt(socket, SOL_SOCKET, SO_COOKIE, &cookie, &size) != 0) {
    return fail_errno("getsockopt", "SO_COOKIE");
  }
  return cookie;
}

bool hung_up(int socket) {
  pollfd entry{socket, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

class Server::Core : public SessionHost, public std::enable_shared_from_this<Core> {
 public:
  explicit Core(asio::any_io_executor executor)
      : executor_(std::move(executor)), calls_(executor_) {}

  void add(std::string service, std::string method, RawHandler handler, RawWaitHandler waits) {
    std::string short_name = service.substr(service.rfind('.') + 1);
    auto known = std::make_shared<const Method>(
        Method{std::move(short_name), method, std::move(handler), std::move(waits)});
    methods_[std::move(service)][std::move(method)] = std::move(known);
  }

  static Task<> serve(std::shared_ptr<Core> self, UniqueFd listener);
  static Task<> finish_running(std::shared_ptr<Core> self, std::chrono::nanoseconds timeout);
  static Task<bool> halt(std::shared_ptr<Core> self, std::chrono::nanoseconds grace);
  static Task<> stop(std::shared_ptr<Core> self, std::chrono::nanoseconds grace);
  std::shared_ptr<Peer> adopt(UniqueFd socket, std::unique_ptr<Journal> journal,
                              PeerProcess process);
  void let_go_of_all();
  std::size_t connections() const { return sessions_.size(); }

  // SessionHost
  Result<std::shared_ptr<const Method>> find(const std::string& service,
                                             const std::string& method) const override;
  void spawn(Task<> call) override { calls_.spawn(std::move(call)); }
  std::uint64_t call_began() override {
    running_.insert(++last_call_);
    return last_call_;
  }
  void call_ended(std::uint64_t number) override { running_.erase(number); }
  const CallObserver& observer() const override { return observer_; }
  void observe(CallObserver observer) { observer_ = std::move(observer); }
  void changed() override {
    if (stopping_.is_set() && idle()) drained_.set();
  }
  void forget(std::uint64_t peer) override {
    sessions_.erase(peer);
    changed();
  }

 private:
  bool idle() const {
    return std::all_of(sessions_.begin(), sessions_.end(),
                       [](const auto& entry) { return entry.second->idle(); });
  }

  asio::any_io_executor executor_;
  std::map<std::string, std::map<std::string, std::shared_ptr<const Method>>> methods_;
  std::map<std::uint64_t, std::shared_ptr<Session>> sessions_;
  TaskGroup calls_;
  // By number, which is the order of their beginnings.
  std::set<std::uint64_t> running_;
  std::uint64_t last_call_ = 0;
  CallObserver observer_;
  std::list<asio::posix::stream_descriptor*> listeners_;
  Event stopping_;
  // Stopping, no call that stop() waits for is running and every answer has left.
  Event drained_;
};

Result<std::shared_ptr<const Method>> Server::Core::find(const std::string& service,
                                                         const std::string& method) const {
  const auto methods = methods_.find(service);
  if (methods == methods_.end()) {
    return fail(Code::kUnimplemented, "service {} is not served here", service);
  }
  const auto found = methods->second.find(method);
  if (found == methods->second.end()) {
    return fail(Code::kUnimplemented, "method {}.{} does not exist", service, method);
  }
  return found->second;
}

std::shared_ptr<Peer> Server::Core::adopt(UniqueFd socket, std::unique_ptr<Journal> journal,
                                          PeerProcess process) {
  if (stopping_.is_set()) return nullptr;
  Result<std::uint64_t> id = connection_id(socket.get());
  Result<> allowed = id ? check_peer(socket.get()) : fail(std::move(id).error());
  if (!allowed) {
    log::warning({}, "ttrpc connection refused: {}", allowed.error().message);
    if (journal) journal->discard();
    return nullptr;
  }
  auto connection = Connection::adopt(executor_, std::move(socket), std::move(journal));
  if (!connection) {
    log::warning({}, "ttrpc connection refused: {}", connection.error().message);
    return nullptr;
  }
  auto peer = std::make_shared<Peer>(*id, process);
  const auto session = std::make_shared<Session>(shared_from_this(), std::move(*connection), peer);
  sessions_[*id] = session;
  session->start();
  return peer;
}

Task<> Server::Core::serve(std::shared_ptr<Core> self, UniqueFd listener) {
  asio::posix::stream_descriptor descriptor(self->executor_);
  boost::system::error_code ec;
  descriptor.assign(listener.get(), ec);
  if (!ec) {
    listener.release();
    descriptor.native_non_blocking(true, ec);
  }
  if (ec) {
    log::error({}, "cannot listen for ttrpc connections: {}", ec.message());
    co_return;
  }
  const auto place = self->listeners_.insert(self->listeners_.end(), &descriptor);
  bool complained = false;
  int turn = 0;
  while (!self->stopping_.is_set()) {
    if ((co_await asio::this_coro::cancellation_state).cancelled() != asio::cancellation_type::none)
      break;
    UniqueFd socket;
    if (turn++ < kAcceptsPerTurn) {
      socket.reset(
          ::accept4(descriptor.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (socket) {
        complained = false;
        self->adopt(std::move(socket), nullptr, {});
        continue;
      }
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EAGAIN) {
        const Error why = Error::from_errno("accept", "a ttrpc connection");
        if (is_final(why.err)) {
          log::error({}, "{}; no more connections are taken", why.message);
          break;
        }
        if (!complained) log::error({}, "{}; trying again", why.message);
        complained = true;
        co_await self->stopping_.wait_for(kAcceptPause);
        continue;
      }
    }
    turn = 0;
    co_await descriptor.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
  }
  self->listeners_.erase(place);
}

void Server::Core::let_go_of_all() {
  std::vector<std::shared_ptr<Session>> open;
  for (const auto& [id, session] : sessions_) open.push_back(session);
  for (const auto& session : open) session->let_go();
}

Task<> Server::Core::finish_running(std::shared_ptr<Core> self, std::chrono::nanoseconds timeout) {
  const std::uint64_t last = self->last_call_;
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (!self->running_.empty() && *self->running_.begin() <= last &&
         std::chrono::steady_clock::now() < end) {
    co_await sleep_for(kFinishPeriod);
  }
}

Task<bool> Server::Core::halt(std::shared_ptr<Core> self, std::chrono::nanoseconds grace) {
  self->stopping_.set();
  for (asio::posix::stream_descriptor* listener : self->listeners_) listener->cancel();
  for (const auto& [id, session] : self->sessions_) session->stop_reading();
  self->changed();
  const auto end = std::chrono::steady_clock::now() + grace;
  while (!self->drained_.is_set() && std::chrono::steady_clock::now() < end) {
    co_await self->drained_.wait_for(end - std::chrono::steady_clock::now());
  }
  self->let_go_of_all();
  co_return self->running_.empty();
}

Task<> Server::Core::stop(std::shared_ptr<Core> self, std::chrono::nanoseconds grace) {
  (void)co_await halt(self, grace);
  while (self->calls_.size() > 0) {
    // One signal ends one wait; a handler may have several ahead of it.
    self->calls_.cancel();
    co_await sleep_for(kCancelPeriod);
  }
}

Server::Server(asio::any_io_executor executor)
    : core_(std::make_shared<Core>(std::move(executor))) {}

Server::~Server() {
  core_->let_go_of_all();
}

void Server::add_raw(std::string service, std::string method, RawHandler handler) {
  core_->add(std::move(service), std::move(method), std::move(handler), nullptr);
}

void Server::add_raw_wait(std::string service, std::string method, RawWaitHandler handler) {
  core_->add(std::move(service), std::move(method), nullptr, std::move(handler));
}

void Server::add_unimplemented(std::string service, std::string method, std::string words) {
  add_raw(
      std::move(service), std::move(method),
      [words = std::move(words)](std::string, CallContext) { return Session::refuse_call(words); });
}

void Server::observe(CallObserver observer) {
  core_->observe(std::move(observer));
}

Task<> Server::serve(UniqueFd listener) {
  return Core::serve(core_, std::move(listener));
}

std::shared_ptr<Peer> Server::adopt(UniqueFd connection, std::unique_ptr<Journal> journal,
                                    PeerProcess process) {
  return core_->adopt(std::move(connection), std::move(journal), process);
}

Task<> Server::finish_running(std::chrono::nanoseconds timeout) {
  return Core::finish_running(core_, timeout);
}

Task<bool> Server::halt(std::chrono::nanoseconds grace) {
  return Core::halt(core_, grace);
}

Task<> Server::stop(std::chrono::nanoseconds grace) {
  return Core::stop(core_, grace);
}

std::size_t Server::connections() const {
  return core_->connections();
}

}  // namespace kuasar::ttrpc
