#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/version.h"
#include "bench/args.h"
#include "bench/outcome.h"

namespace {

using namespace kuasar;

int run_main(const std::vector<std::string>& arguments) {
  const Result<bench::Args> args = bench::parse_args(arguments);
  if (!args) {
    fmt::print(stderr, "kuasar-bench: {} (\"kuasar-ctl bench --help\" explains)\n",
               args.error().message);
    return 2;
  }
  switch (args->action) {
    case bench::Args::Action::kHelp: fmt::print("{}", bench::help_text()); return 0;
    case bench::Args::Action::kVersion:
      fmt::print("kuasar-bench {} (Kuasar)\n", version());
      return 0;
    case bench::Args::Action::kMeasure: break;
  }
  if (args->options.image.empty()) {
    fmt::print(stderr,
               "kuasar-bench: no image: --image names one of this node that has sh and sleep\n");
    return 2;
  }
  const Result<int> status = bench::run_and_report(args->options, args->out);
  if (status) return *status;
  fmt::print(stderr, "kuasar-bench: {}\n", status.error().message);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    log::init(log::Level::kError, "kuasar-bench");
    return run_main(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    fmt::print(stderr, "kuasar-bench: {}\n", error.what());
    return 1;
  }
}
