#include "ctl/commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/helper.h"
#include "ctl/config_check.h"
#include "ctl/daemons.h"
#include "ctl/exec.h"
#include "ctl/print.h"
#include "ctl/timing.h"
#include "ctl/views.h"

namespace kuasar::ctl {
namespace {

constexpr const char* kRun = "/run";

std::vector<std::string> sockets_of(const Args& args) {
  return args.sockets.empty() ? find_sockets(kRun) : args.sockets;
}

Error no_daemon() {
  return Error::make(Code::kNotFound,
                     "no sandboxer serves {}/kuasar-*/ctl.sock: is one running, and are you root? "
                     "(--socket and --dir name another place, \"kuasar-ctl doctor\" looks closer)",
                     kRun);
}

void complain(const Error& error) {
  fmt::print(stderr, "kuasar-ctl: {}\n", error.message);
}

/// What the daemons have. One that does not answer is told about, and the others are shown.
struct Everything {
  std::vector<std::unique_ptr<Daemon>> daemons;
  std::vector<PodList> lists;
  int status = 0;
};

Result<Everything> list_all(const Args& args) {
  const std::vector<std::string> sockets = sockets_of(args);
  if (sockets.empty()) return fail(no_daemon());
  Everything all;
  for (const std::string& socket : sockets) {
    auto daemon = Daemon::connect(socket);
    auto answer = daemon ? (*daemon)->call<api::ListResponse>("List", api::ListRequest())
                         : Result<api::ListResponse>(fail(daemon.error()));
    if (!answer) {
      if (sockets.size() == 1) return fail(std::move(answer).error());
      complain(answer.error());
      all.status = 1;
      continue;
    }
    all.lists.push_back({(*daemon)->name(), {answer->pods().begin(), answer->pods().end()}});
    all.daemons.push_back(std::move(*daemon));
  }
  return all;
}

Result<int> run_list(const Args& args) {
  TRY(const Everything all, list_all(args));
  if (args.quiet) {
    fmt::print("{}", pod_ids(all.lists));
  } else if (args.json) {
    fmt::print("{}", pretty(pods_json(all.lists)));
  } else {
    fmt::print("{}", pods_text(all.lists, std::chrono::system_clock::now()));
  }
  return all.status;
}

Result<int> run_inspect(const Args& args) {
  TRY(const Everything all, list_all(args));
  TRY(const Found found, find_pod(all.lists, args.object));
  api::InspectRequest request;
  request.set_id(found.pod);
  request.set_timing(args.timing);
  TRY(const api::InspectResponse answer,
      all.daemons[found.list]->call<api::InspectResponse>("Inspect", request));
  if (args.timing) {
    fmt::print("{}", args.json ? pretty(timing_json(answer.pod())) : timing_text(answer.pod()));
    return 0;
  }
  fmt::print("{}", pretty(pod_json(all.lists[found.list].daemon, answer.pod())));
  return 0;
}

Result<int> run_in_container(const Args& args) {
  TRY(const Everything all, list_all(args));
  TRY(const Found found, find_container(all.lists, args.object));
  return run_exec(*all.daemons[found.list], found.container, args);
}

Result<int> run_stats(const Args& args) {
  TRY(const Everything all, list_all(args));
  const std::vector<Usage> usage = usage_of(all.lists);
  fmt::print("{}", args.json ? pretty(usage_json(usage)) : usage_text(usage));
  return all.status;
}

Result<int> run_health(const Args& args) {
  const std::vector<std::string> sockets = sockets_of(args);
  if (sockets.empty()) return fail(no_daemon());
  std::vector<DaemonHealth> all;
  bool well = true;
  for (const std::string& socket : sockets) {
    DaemonHealth one = ask_health(socket);
    well = well && findings_of(one).empty();
    all.push_back(std::move(one));
  }
  fmt::print("{}", args.json ? pretty(health_json(all))
                             : health_text(all, std::chrono::system_clock::now()));
  return well ? 0 : 1;
}

Result<int> run_config_check(const Args& args) {
  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  const char* path = std::getenv("PATH");
  const std::vector<Sandboxer> sandboxers =
      find_sandboxers({}, self.parent_path().native(), path != nullptr ? path : "");
  const std::vector<Finding> findings =
      check_config(sandboxers, args.files,
                   [](const std::vector<std::string>& argv) { return run_program(argv); });
  fmt::print("{}", args.json ? pretty(report_json(findings)) : report_text(findings));
  return any_failed(findings) ? 1 : 0;
}

/// A program of its own, because it speaks gRPC, which nothing else here needs.
Result<int> run_bench(const Args& args) {
  TRY(std::string program, find_helper("kuasar-bench"));
  std::vector<char*> argv{program.data()};
  for (const std::string& word : args.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execv(program.c_str(), argv.data());
  return fail_errno("exec", program);
}

}  // namespace

Result<int> run_command(const Args& args) {
  switch (args.command) {
    case Command::kHelp: fmt::print("{}", help_text()); return 0;
    case Command::kVersion: fmt::print("{}\n", version_text()); return 0;
    case Command::kList: return run_list(args);
    case Command::kInspect: return run_inspect(args);
    case Command::kExec: return run_in_container(args);
    case Command::kStats: return run_stats(args);
    case Command::kHealth: return run_health(args);
    case Command::kDoctor: return run_doctor(args);
    case Command::kConfigCheck: return run_config_check(args);
    case Command::kBench: return run_bench(args);
  }
  return fail(Code::kInternal, "a command without a function");
}

}  // namespace kuasar::ctl
