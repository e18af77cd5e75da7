#include "daemon/sandboxer.h"

#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <boost/asio/signal_set.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <utility>
#include <vector>

#include "async/task_group.h"
#include "base/log.h"
#include "base/version.h"
#include "daemon/listener.h"
#include "daemon/notify.h"
#include "os/direct_spawner.h"
#include "os/spawn.h"
#include "sandbox/controller_server.h"
#include "sandbox/sandbox_manager.h"
#include "sandbox/state_store.h"
#include "task/events.h"
#include "task/task_service.h"
#include "ttrpc/server.h"

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;

// What a call that runs may take when we are told to end.
constexpr auto kFinishTimeout = 5s;
// Answers that are made already have to leave.
constexpr auto kAnswerGrace = 50ms;
constexpr auto kEventGrace = 1s;

/// Everything that lives as long as the daemon serves, built from the bottom up.
class Service {
 public:
  Service(asio::any_io_executor io, const DaemonConfig& config, sandbox::StateStore& store,
          Engine& engine, BlockingPool& pool)
      : io_(io),
        publisher_(task::EventPublisher::Options{.address = config.containerd + ".ttrpc"}),
        manager_(io, pool, store, *engine.factory),
        tasks_(io, pool, *engine.driver, manager_, publisher_),
        task_server_(io),
        controller_(io, manager_, pool, "ttrpc+unix://" + store.paths().task_socket().native()),
        group_(io) {
    manager_.set_tasks(tasks_);
    tasks_.serve_on(task_server_);
  }

  Task<Result<>> run(asio::signal_set& signals, UniqueFd controller_socket, UniqueFd task_socket) {
    CO_CHECK(co_await manager_.recover());
    group_.spawn(publisher_.run());
    group_.spawn(tasks_.sweep());
    group_.spawn(task_server_.serve(std::move(task_socket)));
    group_.spawn(controller_.serve(std::move(controller_socket)));
    log::info({}, "ready");
    notify_ready("serving");

    boost::system::error_code ec;
    const int signal = co_await signals.async_wait(as_result(ec));
    log::info({}, "{}: stopping; pods stay", signal == SIGINT ? "SIGINT" : "SIGTERM");
    notify_stopping("stopping");
    co_await stop();
    co_return Result<>();
  }

 private:
  // The Controller goes last: from its end until the next daemon's first accept containerd's
  // calls fail.
  Task<> stop() {
    manager_.begin_stop();
    co_await tasks_.quiesce(kFinishTimeout);
    co_await task_server_.stop(kAnswerGrace);
    co_await tasks_.stop();
    co_await manager_.stop_watching();
    co_await publisher_.drain(kEventGrace);
    publisher_.stop();
    co_await controller_.stop();
    co_await group_.join();
  }

  asio::any_io_executor io_;
  task::EventPublisher publisher_;
  sandbox::SandboxManager manager_;
  task::TaskService tasks_;
  ttrpc::Server task_server_;
  sandbox::ControllerServer controller_;
  TaskGroup group_;
};

Task<> run_service(Service& service, asio::signal_set& signals, Listener& controller,
                   Listener& tasks, Result<>& result) {
  result = co_await service.run(signals, controller.take_fd(), tasks.take_fd());
}

Result<> serve(const DaemonConfig& config, const DaemonDefaults& defaults,
               const MakeEngine& make_engine) {
  asio::io_context io(1);
  // Before anybody can see a socket of ours: from then on SIGTERM means a clean end.
  asio::signal_set signals(io, SIGTERM, SIGINT);
  CHECK_OK(os::raise_file_limit());
  CHECK_OK(os::DirectSpawner::become_subreaper());
  CHECK_OK(sandbox::prepare_state_dir(config.dir));
  const sandbox::StatePaths paths(config.dir);
  TRY(const UniqueFd lock, lock_state_dir(paths.lock()));
  TRY(sandbox::StateStore store, sandbox::StateStore::open(config.dir));
  TRY(Listener controller, Listener::bind(config.listen));
  TRY(Listener tasks, Listener::bind(paths.task_socket()));
  log::info({}, "{} {} listens on {}, state in {}", defaults.name, version(), config.listen,
            config.dir);

  BlockingPool pool;
  os::DirectSpawner spawner;
  Parts parts{pool, spawner, store.paths()};
  TRY(Engine engine, make_engine(parts));
  Result<> result;
  {
    Service service(io.get_executor(), config, store, engine, pool);
    spawn_root(io.get_executor(), run_service(service, signals, controller, tasks, result));
    io.run();
  }
  return result;
}

int refuse(const DaemonDefaults& defaults, const Error& error) {
  fmt::print(stderr, "{}: {}\n", defaults.name, error.message);
  return 2;
}

int run_main(int argc, char** argv, const DaemonDefaults& defaults, const DaemonConfig& config,
             const ConfigTable& table, const MakeEngine& make_engine) {
  const Result<Args> args = parse_args(defaults, std::vector<std::string>(argv + 1, argv + argc));
  if (!args) return refuse(defaults, args.error());
  if (args->action == Args::Action::kHelp) {
    fmt::print("{}", help_text(defaults));
    return 0;
  }
  if (args->action == Args::Action::kVersion) {
    fmt::print("{}\n", version_text(defaults));
    return 0;
  }
  if (Result<> loaded = load_config(defaults, *args, table); !loaded) {
    return refuse(defaults, loaded.error());
  }
  if (args->action == Args::Action::kDumpConfig) {
    fmt::print("{}", table.dump());
    return 0;
  }
  log::init(config.log_level, defaults.name);
  if (::geteuid() != 0) {
    return refuse(defaults, Error::make(Code::kPermissionDenied,
                                        "must run as root; rootless operation is not supported"));
  }
  ::umask(022);
  ::signal(SIGPIPE, SIG_IGN);
  if (Result<> served = serve(config, defaults, make_engine); !served) {
    log::error({}, "{}", served.error().message);
    return 1;
  }
  return 0;
}

}  // namespace

int sandboxer_main(int argc, char** argv, const DaemonDefaults& defaults,
                   const DaemonConfig& config, const ConfigTable& table,
                   const MakeEngine& make_engine) {
  try {
    return run_main(argc, argv, defaults, config, table, make_engine);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: {}\n", defaults.name, e.what());
    return 1;
  }
}

Result<std::string> find_helper(const std::string& name) {
  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  if (ec) return fail(Error::from_errno_value(ec.value(), "readlink", "/proc/self/exe"));
  const std::filesystem::path bin = self.parent_path();
  for (const std::filesystem::path& candidate :
       {bin / name, bin.parent_path() / "libexec" / "kuasar" / name}) {
    if (::access(candidate.c_str(), X_OK) == 0) return candidate.native();
  }
  return fail(Code::kNotFound,
              "{} is neither beside {} nor in ../libexec/kuasar: install the suite "
              "whole",
              name, self.native());
}

}  // namespace kuasar::daemon
