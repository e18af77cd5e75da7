#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "async/task.h"
#include "async/task_group.h"
#include "base/error.h"
#include "kuasar/ctl/v1/ctl.pb.h"
#include "ttrpc/client.h"

namespace kuasar::ctl {

namespace api = ::kuasar::ctl::v1;

/// The sockets below a directory (/run): every "kuasar-*/ctl.sock", in order of names.
std::vector<std::string> find_sockets(const std::filesystem::path& run);

/// The connection to one daemon. Calls block; one thread.
class Daemon {
 public:
  static constexpr std::chrono::seconds kTimeout{10};
  static constexpr const char* kService = "kuasar.ctl.v1.Ctl";

  /// kUnavailable in words when nobody answers there.
  static Result<std::unique_ptr<Daemon>> connect(const std::string& socket);
  ~Daemon();

  /// Name of its state directory, e.g. "kuasar-runc".
  std::string name() const { return dir().filename().native(); }
  const std::string& socket() const { return socket_; }
  std::filesystem::path dir() const { return std::filesystem::path(socket_).parent_path(); }

  template <typename Response>
  Result<Response> call(const char* method, const google::protobuf::MessageLite& request) {
    return run(client_->call<Response>(kService, method, request, kTimeout));
  }

  /// For work that needs several things at once.
  asio::io_context& io() { return io_; }
  ttrpc::Client& client() { return *client_; }
  /// Runs one coroutine to its end.
  template <typename T>
  T run(Task<T> task) {
    std::optional<T> value;
    spawn_root(io_.get_executor(), keep(std::move(task), value));
    while (!value) {
      io_.restart();
      io_.run_one();
    }
    return std::move(*value);
  }

 private:
  explicit Daemon(std::string socket) : socket_(std::move(socket)) {}

  template <typename T>
  static Task<> keep(Task<T> task, std::optional<T>& value) {
    value.emplace(co_await std::move(task));
  }

  std::string socket_;
  asio::io_context io_{1};
  std::unique_ptr<ttrpc::Client> client_;
};

/// The pods of one daemon.
struct PodList {
  std::string daemon;
  std::vector<api::Pod> pods;
};

/// Where a name led to.
struct Found {
  /// Index into the lists.
  std::size_t list = 0;
  std::string pod;
  /// Empty when a pod was asked for.
  std::string container;
};

/// A pod by its id, the beginning of its id, its name, or "namespace/name". kNotFound;
/// kInvalidArgument names the candidates when several fit. Whole ids and names win over beginnings.
Result<Found> find_pod(const std::vector<PodList>& lists, const std::string& word);
/// A container by its id, the beginning of it, or "POD/NAME" with POD as above.
Result<Found> find_container(const std::vector<PodList>& lists, const std::string& word);

/// One daemon's answer, or why there is none.
struct DaemonHealth {
  std::string socket;
  std::string error;
  api::HealthResponse health;
};
/// What a daemon says of itself; one that does not answer has its `error` filled in.
DaemonHealth ask_health(const std::string& socket);

/// The process that listens on a socket: the kernel noted it at listen(2) (unix(7), SO_PEERCRED).
/// 0: nobody answers there.
pid_t listener_of(const std::string& path);

}  // namespace kuasar::ctl
