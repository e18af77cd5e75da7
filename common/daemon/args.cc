#include "daemon/args.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>

#include "base/failpoint.h"
#include "base/version.h"
#include "base/words.h"

namespace kuasar::daemon {
namespace {

struct Flag {
  std::string_view name;
  char letter;
  /// Where the value goes, or null for a flag without one.
  std::optional<std::string> Args::*target;
  Args::Action action;
};

using Action = Args::Action;
constexpr std::array<Flag, 9> kFlags{{
    {"listen", 'l', &Args::listen, Action::kRun},
    {"dir", 'd', &Args::dir, Action::kRun},
    {"config", 'c', &Args::config, Action::kRun},
    {"log-level", '\0', &Args::log_level, Action::kRun},
    {"containerd", '\0', &Args::containerd, Action::kRun},
    {"keeper", '\0', &Args::keeper, Action::kRun},
    {"dump-config", '\0', nullptr, Action::kDumpConfig},
    {"help", 'h', nullptr, Action::kHelp},
    {"version", 'v', nullptr, Action::kVersion},
}};

const Flag* find_flag(std::string_view spelled) {
  for (const Flag& flag : kFlags) {
    if (spelled.size() == 2 && spelled[0] == '-' && spelled[1] == flag.letter) return &flag;
    if (spelled.size() > 2 && spelled.substr(0, 2) == "--" && spelled.substr(2) == flag.name) {
      return &flag;
    }
  }
  return nullptr;
}

Error unknown_flag(const DaemonDefaults& defaults, std::string_view spelled) {
  std::vector<std::string> names;
  for (const Flag& flag : kFlags) names.emplace_back(flag.name);
  const std::size_t dashes = std::min(spelled.find_first_not_of('-'), spelled.size());
  std::string hint;
  if (const auto nearest = nearest_word(spelled.substr(dashes), names)) {
    hint = fmt::format("; did you mean --{}?", *nearest);
  }
  return Error::make(Code::kInvalidArgument, "unknown flag {}{} (\"{} --help\" lists the flags)",
                     spelled, hint, defaults.name);
}

}  // namespace

Result<Args> parse_args(const DaemonDefaults& defaults, const std::vector<std::string>& arguments) {
  Args args;
  for (auto it = arguments.begin(); it != arguments.end(); ++it) {
    std::string_view spelled = *it;
    std::optional<std::string> value;
    const std::size_t equals = spelled.find('=');
    if (spelled.substr(0, 2) == "--" && equals != std::string_view::npos) {
      value = std::string(spelled.substr(equals + 1));
      spelled = spelled.substr(0, equals);
    }
    if (spelled.empty() || spelled[0] != '-') {
      return fail(Code::kInvalidArgument, "unexpected argument \"{}\": {} takes flags only", *it,
                  defaults.name);
    }
    const Flag* flag = find_flag(spelled);
    if (flag == nullptr) return fail(unknown_flag(defaults, spelled));
    if (flag->target == nullptr) {
      if (value) {
        return fail(Code::kInvalidArgument, "--{} takes no value (\"{}\" was given)", flag->name,
                    *value);
      }
      // Help explains everything else, so that it wins; then the version; then the dump.
      args.action = std::max(args.action, flag->action, [](Action a, Action b) {
        const auto rank = [](Action action) {
          return action == Action::kHelp         ? 3
                 : action == Action::kVersion    ? 2
                 : action == Action::kDumpConfig ? 1
                                                 : 0;
        };
        return rank(a) < rank(b);
      });
      continue;
    }
    if (!value) {
      if (std::next(it) == arguments.end()) {
        return fail(Code::kInvalidArgument, "--{} needs a value", flag->name);
      }
      value = *++it;
    }
    if (value->empty()) {
      return fail(Code::kInvalidArgument, "the value of --{} is empty", flag->name);
    }
    args.*flag->target = std::move(*value);
  }
  return args;
}

std::string help_text(const DaemonDefaults& defaults) {
  std::string drop_ins = defaults.config;
  if (drop_ins.ends_with(".toml")) drop_ins.resize(drop_ins.size() - 5);
  drop_ins += ".d/NN-*.toml";
  return fmt::format(
      "{0} {1} - runs Kubernetes pods of the {2} kind for containerd >= 2.1\n"
      "\n"
      "Usage: {0} [flags]\n"
      "\n"
      "  -l, --listen PATH        socket for containerd's sandbox controller plugin\n"
      "                           (default {3})\n"
      "  -d, --dir PATH           state directory, on a tmpfs (default {4})\n"
      "  -c, --config PATH        configuration file (default {5},\n"
      "                           may be missing; then {6})\n"
      "      --log-level LEVEL    error, warning, info, debug or trace (default info)\n"
      "      --containerd PATH    containerd's socket (default /run/containerd/containerd.sock)\n"
      "      --keeper PATH        socket of a kuasar-keeper that is a service of its own (default\n"
      "                           own: one is started as DIR/keeper.sock when it is needed)\n"
      "      --dump-config        print the effective configuration as TOML and exit\n"
      "  -h, --help               print this text and exit\n"
      "  -v, --version            print the version and exit\n"
      "\n"
      "A flag on the command line wins over the configuration files. Exit status: 0 after a clean\n"
      "stop (SIGTERM), 1 when it could not start or go on, 2 for a wrong command line or\n"
      "configuration.\n",
      defaults.name, version(), defaults.kind, defaults.listen, defaults.dir, defaults.config,
      drop_ins);
}

std::string version_text(const DaemonDefaults& defaults) {
  return fmt::format("{} {} (Kuasar{})", defaults.name, version(),
                     kHasFailpoints ? ", with failpoints for tests" : "");
}

}  // namespace kuasar::daemon
