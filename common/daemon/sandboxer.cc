#include "daemon/sandboxer.h"

#include <fmt/core.h>
#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <boost/asio/signal_set.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <utility>
#include <vector>

#include "async/task_group.h"
#include "base/crash_mark.h"
#include "base/failpoint.h"
#include "base/helper.h"
#include "base/log.h"
#include "base/version.h"
#include "daemon/ctl_health.h"
#include "daemon/ctl_service.h"
#include "daemon/give_back.h"
#include "daemon/listener.h"
#include "daemon/notify.h"
#include "daemon/task_connections.h"
#include "daemon/telemetry.h"
#include "keeper/client.h"
#include "keeper/keeper_spawner.h"
#include "os/own_memory.h"
#include "os/spawn.h"
#include "sandbox/controller_server.h"
#include "sandbox/orphan_collector.h"
#include "sandbox/sandbox_manager.h"
#include "sandbox/sandbox_store.h"
#include "sandbox/state_store.h"
#include "task/events.h"
#include "task/task_service.h"
#include "ttrpc/server.h"

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;

// What a call that runs may take when we are told to end, while all others are served; then what
// those take that came meanwhile; and all of the end.
constexpr auto kFinishTimeout = 3s;
constexpr auto kHaltTimeout = 500ms;
constexpr auto kEndTimeout = 5s;
constexpr auto kEventGrace = 1s;
constexpr const char* kControllerListener = "listen/controller";
constexpr const char* kTaskListener = "listen/task";

struct Sockets {
  Listener controller;
  Listener tasks;
};

/// The keeper's side of a daemon, before anything is served.
struct Keeping {
  std::unique_ptr<keeper::KeeperClient> client;
  /// It is ours to end.
  bool own = false;
  Sockets sockets;
};

bool has_crashed(const sandbox::StatePaths& paths) {
  const Result<bool> crashed = take_crash_mark(paths.crash_mark());
  if (!crashed) log::warning({}, "a crash will not be known as one: {}", crashed.error().message);
  if (crashed.value_or(false)) log::error({}, "the daemon before this one crashed");
  return crashed.value_or(false);
}

/// Everything that lives as long as the daemon serves, built from the bottom up.
class Service {
 public:
  Service(asio::any_io_executor io, const DaemonDefaults& defaults, const DaemonConfig& config,
          sandbox::StateStore& store, Engine& engine, BlockingPool& pool,
          keeper::KeeperSpawner& spawner, Keeping& keeping)
      : spawner_(spawner),
        keeping_(keeping),
        publisher_(task::EventPublisher::Options{.address = config.containerd + ".ttrpc"}),
        manager_(io, pool, store, *engine.factory),
        sandboxes_of_containerd_(sandbox::containerd_store(io, config.containerd)),
        orphans_(manager_, *sandboxes_of_containerd_, config.orphan_grace),
        tasks_(io, pool, *engine.driver, manager_, publisher_, *keeping.client,
               store.paths().consoles().native()),
        task_server_(io),
        connections_(*keeping.client, task_server_, store.paths().journals(),
                     has_crashed(store.paths())),
        controller_(io, manager_, pool, "ttrpc+unix://" + store.paths().task_socket().native()),
        telemetry_(io,
                   {pool, manager_, orphans_, controller_, tasks_, task_server_, publisher_,
                    *keeping.client, engine.gate},
                   {.name = defaults.name,
                    .version = std::string(version()),
                    .starts = count_start(store.paths().starts())}),
        config_(config),
        background_(engine.background),
        ctl_(io,
             {pool, store, manager_, tasks_,
              describe_daemon(defaults.name, config, *keeping.client, publisher_, engine.gate)}),
        group_(io),
        collectors_(io),
        keepers_(io) {
    manager_.set_tasks(tasks_);
    tasks_.serve_on(task_server_);
  }

  Task<Result<>> run(asio::signal_set& signals) {
    keepers_.spawn(keeping_.client->run());
    Result<> begun = co_await begin();
    if (!begun) {
      co_await stop();
      co_return begun;
    }
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
  Task<Result<>> begin() {
    CO_CHECK(co_await manager_.recover());
    if (Result<> told = telemetry_.begin(config_); !told) {
      log::warning({}, "metrics are not served: {}", told.error().message);
    }
    group_.spawn(publisher_.run());
    CO_TRY(const task::HeldConnections held, connections_.begin(keeping_.sockets.tasks.fd()));
    tasks_.connections_are_back(held);
    keepers_.spawn(spawner_.reap_strays());
    keepers_.spawn(spawner_.forget_unclaimed());
    keepers_.spawn(give_memory_back());
    for (const auto& work : background_) keepers_.spawn(work());
    group_.spawn(tasks_.sweep());
    collectors_.spawn(orphans_.run());
    group_.spawn(controller_.serve(keeping_.sockets.controller.take_fd()));
    if (Result<> served = ctl_.begin(); !served) {
      log::warning({}, "kuasar-ctl is not served: {}", served.error().message);
    }
    co_return Result<>();
  }

  // What runs is finished while everything is served. Then task calls stop being read: what
  // containerd asks for from then on waits in its connection for the next daemon. The Controller is
  // served until the last of the calls that run has ended: from its end until the next daemon's
  // first accept containerd's calls wait in the socket's backlog (T27). What does not end in time
  // goes on in the keeper, and the next daemon takes it over as after a kill -9.
  Task<> stop() {
    asio::steady_timer too_late(co_await asio::this_coro::executor, kEndTimeout);
    too_late.async_wait([](const boost::system::error_code& ec) {
      if (!ec) leave_to_the_next();
    });
    co_await task_server_.finish_running(kFinishTimeout);
    connections_.end();
    orphans_.stop();
    const bool finished = co_await task_server_.halt(kHaltTimeout);
    if (!finished) leave_to_the_next();
    co_await ctl_.stop();
    co_await telemetry_.stop();
    co_await task_server_.stop(0s);
    manager_.begin_stop();
    co_await controller_.stop();
    co_await collectors_.join();
    co_await tasks_.quiesce(kEndTimeout);
    co_await tasks_.stop();
    co_await manager_.stop_watching();
    co_await publisher_.drain(kEventGrace);
    publisher_.stop();
    co_await group_.join();
    keepers_.cancel();
    co_await keepers_.join();
  }

  [[noreturn]] static void leave_to_the_next() {
    log::warning({},
                 "calls still run: they are left to the keeper, and the next daemon goes on with "
                 "them");
    ::_exit(0);
  }

  keeper::KeeperSpawner& spawner_;
  Keeping& keeping_;
  task::EventPublisher publisher_;
  sandbox::SandboxManager manager_;
  std::unique_ptr<sandbox::SandboxStore> sandboxes_of_containerd_;
  sandbox::OrphanCollector orphans_;
  task::TaskService tasks_;
  ttrpc::Server task_server_;
  TaskConnections connections_;
  sandbox::ControllerServer controller_;
  Telemetry telemetry_;
  const DaemonConfig& config_;
  std::vector<std::function<Task<>()>> background_;
  CtlService ctl_;
  TaskGroup group_;
  /// They remove pods: ended before what that needs.
  TaskGroup collectors_;
  /// Run until everything else has ended.
  TaskGroup keepers_;
};

Task<> run_service(Service& service, asio::signal_set& signals, Result<>& result) {
  result = co_await service.run(signals);
}

// The listening socket that the keeper holds for us, or a new one.
Result<Listener> listen_at(keeper::KeeperClient& keeper, const std::string& name,
                           const std::string& path) {
  if (Result<UniqueFd> held = keeper.get(name)) {
    if (std::optional<Listener> listener = Listener::resume(path, std::move(*held))) {
      return std::move(*listener);
    }
    keeper.drop(name);
  }
  TRY(Listener listener, Listener::bind(path));
  CHECK_OK(keeper.hold(name, listener.fd()));
  return listener;
}

Result<Sockets> take_sockets(keeper::KeeperClient& keeper, const std::string& listen,
                             const sandbox::StatePaths& paths) {
  TRY(Listener controller, listen_at(keeper, kControllerListener, listen));
  TRY(Listener tasks, listen_at(keeper, kTaskListener, paths.task_socket()));
  return Sockets{std::move(controller), std::move(tasks)};
}

// With nothing left that a later daemon would have to know, our own keeper goes too, and the
// sockets with it: a client is better refused than kept waiting for a daemon that nobody starts
// again. Task connections are nothing to keep where no pod is: they can only be told NOT_FOUND.
bool end_keeper(keeper::KeeperClient& client, const sandbox::StatePaths& paths) {
  std::error_code ec;
  if (!std::filesystem::is_empty(paths.sandboxes(), ec) || ec) return false;
  if (const Result<> ended = client.quit(); !ended) {
    log::info({}, "the keeper stays: {}", ended.error().message);
    return false;
  }
  std::filesystem::remove_all(paths.journals(), ec);
  return true;
}

Result<Keeping> begin_keeping(asio::any_io_executor io, const DaemonConfig& config,
                              const sandbox::StatePaths& paths) {
  const bool own = config.keeper == DaemonConfig::kOwnKeeper;
  TRY(const std::string program, find_helper("kuasar-keeper"));
  keeper::KeeperClient::Options options;
  options.socket = own ? paths.keeper_socket().native() : config.keeper;
  if (own) options.program = program;
  TRY(auto client, keeper::KeeperClient::connect(io, std::move(options)));
  if (Result<> upgraded = client->upgrade_if_other(program); !upgraded) {
    log::warning({}, "the keeper stays at version {}: {}", client->keeper_version(),
                 upgraded.error().message);
  }
  Result<Sockets> sockets = take_sockets(*client, config.listen, paths);
  if (!sockets) {
    if (own) end_keeper(*client, paths);
    return fail(std::move(sockets).error());
  }
  return Keeping{std::move(client), own, std::move(*sockets)};
}

void end_keeping(Keeping& keeping, const sandbox::StatePaths& paths) {
  if (keeping.own && end_keeper(*keeping.client, paths)) return;
  keeping.sockets.controller.keep_file();
  keeping.sockets.tasks.keep_file();
}

Result<> serve_state(asio::io_context& io, asio::signal_set& signals, const DaemonConfig& config,
                     const DaemonDefaults& defaults, const sandbox::StatePaths& paths,
                     const MakeEngine& make_engine) {
  TRY(sandbox::StateStore store, sandbox::StateStore::open(config.dir));
  TRY(Keeping keeping, begin_keeping(io.get_executor(), config, paths));
  log::info({}, "{} {} listens on {}, state in {}", defaults.name, version(), config.listen,
            config.dir);

  if (kHasFailpoints) log::warning({}, "built with failpoints for tests: not for a real node");

  BlockingPool pool;
  keeper::KeeperSpawner spawner(*keeping.client);
  Parts parts{pool, spawner, *keeping.client, store.paths()};
  Result<> result;
  if (Result<Engine> engine = make_engine(parts)) {
    Service service(io.get_executor(), defaults, config, store, *engine, pool, spawner, keeping);
    spawn_root(io.get_executor(), run_service(service, signals, result));
    io.run();
  } else {
    result = fail(engine.error());
  }
  end_keeping(keeping, store.paths());
  return result;
}

Result<> serve(const DaemonConfig& config, const DaemonDefaults& defaults,
               const MakeEngine& make_engine) {
  asio::io_context io(1);
  // Before anybody can see a socket of ours: from then on SIGTERM means a clean end.
  asio::signal_set signals(io, SIGTERM, SIGINT);
  CHECK_OK(os::raise_file_limit());
  CHECK_OK(sandbox::prepare_state_dir(config.dir));
  const sandbox::StatePaths paths(config.dir);
  TRY(const UniqueFd lock, lock_state_dir(paths.lock()));
  Result<> served = serve_state(io, signals, config, defaults, paths, make_engine);
  sandbox::release_state_dir(paths);
  return served;
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
  os::forbid_core_dumps();
  // Memory is for pods. One thread does nearly all the work: an arena for each of the others would
  // only keep what a burst of pods left in it.
  ::mallopt(M_ARENA_MAX, 1);
  ::mallopt(M_TRIM_THRESHOLD, 128 << 10);
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

}  // namespace kuasar::daemon
