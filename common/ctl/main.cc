#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "base/log.h"
#include "ctl/args.h"
#include "ctl/commands.h"

namespace {

using namespace kuasar;

int run_main(const std::vector<std::string>& arguments) {
  const Result<ctl::Args> args = ctl::parse_args(arguments);
  const Result<int> status = args ? ctl::run_command(*args) : Result<int>(fail(args.error()));
  if (status) return *status;
  fmt::print(stderr, "kuasar-ctl: {}\n", status.error().message);
  return args ? 1 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    log::init(log::Level::kError, "kuasar-ctl");
    return run_main(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    fmt::print(stderr, "kuasar-ctl: {}\n", error.what());
    return 1;
  }
}
