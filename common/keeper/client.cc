#include "keeper/client.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <charconv>
#include <iterator>

#include "base/log.h"
#include "base/version.h"

namespace kuasar::keeper {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// The keeper runs the check of the new one within it, for up to five seconds.
constexpr milliseconds kUpgradeTimeout = seconds(15);

Result<UniqueFd> duplicate(int fd, const std::string& name) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) return fail_errno("duplicate", name);
  return copy;
}

}  // namespace

KeeperClient::KeeperClient(asio::any_io_executor executor, Options options)
    : executor_(std::move(executor)), options_(std::move(options)) {}

KeeperClient::~KeeperClient() = default;

Result<std::unique_ptr<KeeperClient>> KeeperClient::connect(asio::any_io_executor executor,
                                                            Options options) {
  std::unique_ptr<KeeperClient> client(new KeeperClient(std::move(executor), std::move(options)));
  CHECK_OK(client->reach());
  if (client->protocol_ != wire::kVersion) {
    // UPGRADE is the same in every version.
    CHECK_OK(client->upgrade(client->options_.program));
  }
  std::optional<Incoming> listed = client->try_call(wire::kList, {}, {}, {}, seconds(30));
  if (!listed) return fail(Code::kUnavailable, "the keeper ended while it told what it holds");
  for (auto& [key, child] : client->children_) child.unclaimed = true;
  // What was accepted meanwhile is found with held().
  client->arrivals_.clear();
  return client;
}

std::optional<Incoming> KeeperClient::try_call(wire::Type type, std::string_view name,
                                               std::string_view body, std::span<const int> fds,
                                               milliseconds timeout) {
  if (!connection_) return std::nullopt;
  const std::uint32_t sequence = ++sequence_;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  bool alive = connection_->send(type, sequence, name, body, fds);
  while (alive) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now());
    Incoming message;
    const Connection::Read read = connection_->receive(message, std::max(left, milliseconds(0)));
    if (read == Connection::Read::kMessage) {
      if (message.header.type == wire::kAnswer && message.header.sequence == sequence) {
        return message;
      }
      absorb(std::move(message));
      continue;
    }
    alive = read == Connection::Read::kNothing && left.count() > 0;
  }
  log::debug({}, "the keeper {} does not answer request {}", keeper_pid_, static_cast<int>(type));
  connection_->end(SIGKILL);
  connection_.reset();
  return std::nullopt;
}

Result<Incoming> KeeperClient::call(wire::Type type, std::string_view name, std::string_view body,
                                    std::span<const int> fds, milliseconds timeout) {
  std::optional<Incoming> answer = try_call(type, name, body, fds, timeout);
  if (!answer) {
    CHECK_OK(restore());
    answer = try_call(type, name, body, fds, timeout);
  }
  if (!answer) return fail(Code::kUnavailable, "the keeper died twice at one request");
  if (answer->header.error != 0) {
    const int err = answer->header.error;
    const Code code = err == EBUSY ? Code::kUnavailable : code_from_errno(err);
    return fail(Error{code, err, "keeper: " + answer->body});
  }
  return std::move(*answer);
}

void KeeperClient::absorb(Incoming message) {
  if (message.fds.size() != 1) {
    log::error({}, "the keeper sent {} without a descriptor (limit of open files reached?)",
               message.name);
    return;
  }
  UniqueFd fd = std::move(message.fds[0]);
  wire::Info info{};
  if (message.header.type != wire::kHeld || !message.read(info)) return;
  if (info.pid != 0) return take_child(message.name, message, std::move(fd));
  if (held_.contains(message.name)) return;
  held_[message.name] = Held{std::move(fd), (info.flags & wire::kAccepting) != 0};
  arrivals_.push_back(message.name);
  deliver_later();
  // Names of connections end in their number; what has none does not count.
  std::uint64_t number = 0;
  const char* end = message.name.data() + message.name.size();
  const auto parsed =
      std::from_chars(message.name.data() + message.name.rfind('/') + 1, end, number);
  if (parsed.ec == std::errc{} && parsed.ptr == end) {
    next_connection_ = std::max(next_connection_, number + 1);
  }
}

Result<> KeeperClient::hold(const std::string& name, int fd) {
  if (!wire::valid_name(name)) {
    return fail(Code::kInvalidArgument, "no descriptor can be held as \"{}\"", name);
  }
  TRY(UniqueFd copy, duplicate(fd, name));
  const int sent = copy.get();
  held_[name] = Held{std::move(copy), false};
  Result<Incoming> answer = call(wire::kHold, name, {}, std::span(&sent, 1));
  if (answer) return {};
  held_.erase(name);
  return fail(std::move(answer).error());
}

void KeeperClient::drop(const std::string& name) {
  if (held_.erase(name) == 0) return;
  const Result<Incoming> answer = call(wire::kDrop, name);
  if (!answer) log::error({}, "drop {}: {}", name, answer.error().message);
}

Result<UniqueFd> KeeperClient::get(const std::string& name) {
  const auto found = held_.find(name);
  if (found == held_.end()) return fail(Code::kNotFound, "nothing is held as {}", name);
  return duplicate(found->second.fd.get(), name);
}

Result<> KeeperClient::accept(const std::string& kind, int listening_fd) {
  TRY(UniqueFd copy, duplicate(listening_fd, kind));
  const int sent = copy.get();
  const std::string name = wire::kListenPrefix + kind;
  Result<Incoming> answer = call(wire::kAccept, name, {}, std::span(&sent, 1));
  if (!answer) return fail(std::move(answer).error());
  held_[name] = Held{std::move(copy), true};
  return {};
}

std::vector<std::string> KeeperClient::held(std::string_view prefix) const {
  std::vector<std::string> names;
  for (auto at = held_.lower_bound(std::string(prefix));
       at != held_.end() && at->first.starts_with(prefix); ++at) {
    names.push_back(at->first);
  }
  return names;
}

void KeeperClient::on_accept(Accepted accepted) {
  accepted_ = std::move(accepted);
  deliver_later();
}

// Never from within a call: the callback may make calls itself.
void KeeperClient::deliver_later() {
  asio::post(executor_, [this, alive = std::weak_ptr<bool>(alive_)] {
    if (!alive.expired()) deliver();
  });
}

void KeeperClient::deliver() {
  const std::weak_ptr<bool> alive(alive_);
  while (!alive.expired() && accepted_ && !arrivals_.empty()) {
    const std::string name = std::move(arrivals_.front());
    arrivals_.pop_front();
    Result<UniqueFd> fd = get(name);
    if (fd) {
      accepted_(name, std::move(*fd));
    } else if (fd.error().code != Code::kNotFound) {
      log::error({}, "a connection cannot be served: {}", fd.error().message);
    }
  }
}

void KeeperClient::drain() {
  while (connection_) {
    Incoming message;
    const Connection::Read read = connection_->receive(message, milliseconds(0));
    if (read == Connection::Read::kNothing) return;
    if (read == Connection::Read::kMessage) {
      absorb(std::move(message));
      continue;
    }
    connection_->end(SIGKILL);
    connection_.reset();
  }
}

Result<> KeeperClient::upgrade(const std::string& program) {
  if (program.empty()) {
    return fail(Code::kFailedPrecondition,
                "the keeper is of version {}, we are {}: restart it with this version's program",
                version_, kuasar::version());
  }
  const UniqueFd file(::open(program.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno("open", program);
  const int sent = file.get();
  Result<Incoming> answer = call(wire::kUpgrade, {}, {}, std::span(&sent, 1), kUpgradeTimeout);
  if (!answer) {
    Error error = std::move(answer).error();
    error.code = Code::kFailedPrecondition;
    return fail(std::move(error).context("the keeper {} does not become {}", version_, program));
  }
  version_ = answer->name;
  protocol_ = answer->header.version;
  return {};
}

Result<> KeeperClient::upgrade_if_other(const std::string& program) {
  if (version_ == kuasar::version()) return {};
  return upgrade(program);
}

Result<> KeeperClient::quit() {
  if (!children_.empty()) {
    return fail(Code::kUnavailable, "the keeper does not end: {} processes are still named",
                children_.size());
  }
  // Dead is what is asked for: without a connection it is so already.
  if (connection_ && !connection_->end(SIGTERM)) connection_->end(SIGKILL);
  ::unlink(options_.socket.c_str());
  connection_.reset();
  held_.clear();
  return {};
}

}  // namespace kuasar::keeper
