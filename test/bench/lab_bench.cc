#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "base/log.h"
#include "bench/args.h"
#include "bench/outcome.h"
#include "support/lab.h"

// The program behind `tools/dev bench`: kuasar-bench on a containerd of its own. It takes the same
// flags; those that say where things are it fills in itself.

namespace kuasar::test {
namespace {

int measure(const std::vector<std::string>& arguments) {
  Result<bench::Args> args = bench::parse_args(arguments);
  if (!args) {
    fmt::print(stderr, "error: {}\n", args.error().message);
    return 2;
  }
  if (args->action != bench::Args::Action::kMeasure) {
    fmt::print("{}", bench::help_text());
    return 0;
  }
  Lab lab(sandboxers_under_test().front(), "", std::nullopt, "info");
  lab.count_cpu();
  bench::Options& options = args->options;
  options.containerd = lab.containerd_socket();
  options.handler = lab.sandboxer().handler;
  options.peer = "runc";
  options.daemon = lab.dir() / "ctl.sock";
  options.image = kBusyboxImage;
  options.cgroup_parent = lab.cgroup_parent();
  options.kill = true;
  options.restart = [&]() -> Result<> {
    // It is the bench that waits, by asking it: the lab would read its log again and again.
    lab.kill_sandboxer();
    lab.spawn_sandboxer();
    lab.count_cpu();
    return {};
  };
  const Result<int> status = bench::run_and_report(options, args->out);
  if (status) return *status;
  fmt::print(stderr, "error: {}\n{}", status.error().message, lab.log_tails(20));
  return 1;
}

}  // namespace
}  // namespace kuasar::test

int main(int argc, char** argv) {
  try {
    return kuasar::test::measure(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}
