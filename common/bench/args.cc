#include "bench/args.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "base/version.h"
#include "base/words.h"

namespace kuasar::bench {
namespace {

using Store = Result<> (*)(Args& args, const std::string& value);

struct Flag {
  std::string_view name;
  bool has_value;
  Store store;
};

template <auto Member>
Result<> store_option(Args& args, const std::string& value) {
  args.options.*Member = value;
  return {};
}

template <auto Member, int Least, int Most>
Result<> store_number(Args& args, const std::string& value) {
  int number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number < Least ||
      number > Most) {
    return fail(Code::kInvalidArgument, "\"{}\" is not a number from {} to {}", value, Least, Most);
  }
  args.options.*Member = number;
  return {};
}

template <Args::Action Which>
Result<> store_action(Args& args, const std::string&) {
  args.action = Which;
  return {};
}

constexpr std::array<Flag, 12> kFlags{{
    {"image", true, store_option<&Options::image>},
    {"handler", true, store_option<&Options::handler>},
    {"peer", true, store_option<&Options::peer>},
    {"containerd", true, store_option<&Options::containerd>},
    {"socket", true, store_option<&Options::daemon>},
    {"cgroup-parent", true, store_option<&Options::cgroup_parent>},
    {"rounds", true, store_number<&Options::rounds, 1, 1000>},
    {"most-pods", true, store_number<&Options::most_pods, 0, 500>},
    {"kill", false,
     [](Args& args, const std::string&) -> Result<> {
       args.options.kill = true;
       return {};
     }},
    {"out", true,
     [](Args& args, const std::string& value) -> Result<> {
       args.out = value;
       return {};
     }},
    {"help", false, store_action<Args::Action::kHelp>},
    {"version", false, store_action<Args::Action::kVersion>},
}};

Error unknown(const std::string& word) {
  std::vector<std::string> names;
  for (const Flag& flag : kFlags) names.emplace_back(flag.name);
  const auto nearest =
      nearest_word(word.substr(std::min(word.find_first_not_of('-'), word.size())), names);
  return Error::make(Code::kInvalidArgument, "unknown flag {}{}", word,
                     nearest ? fmt::format("; did you mean --{}?", *nearest) : "");
}

}  // namespace

Result<Args> parse_args(const std::vector<std::string>& arguments) {
  Args args;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const std::size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    if (name == "-h") name = "--help";
    if (name == "-v") name = "--version";
    const auto flag = std::find_if(kFlags.begin(), kFlags.end(), [&](const Flag& one) {
      return name.starts_with("--") && one.name == std::string_view(name).substr(2);
    });
    if (flag == kFlags.end()) return fail(unknown(name));
    std::string value;
    if (flag->has_value && equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (flag->has_value && i + 1 < arguments.size()) {
      value = arguments[++i];
    }
    if (flag->has_value && value.empty()) {
      return fail(Code::kInvalidArgument, "{} needs a value", name);
    }
    if (!flag->has_value && equals != std::string::npos) {
      return fail(Code::kInvalidArgument, "{} takes no value", name);
    }
    const Result<> stored = flag->store(args, value);
    if (!stored) return fail(Error(stored.error()).context("{}", name));
    if (args.action != Args::Action::kMeasure) return args;
  }
  return args;
}

std::string help_text() {
  return fmt::format(
      "kuasar-bench {} - our runtime handler and containerd's own, side by side on this node\n"
      "\n"
      "Usage: kuasar-ctl bench --image IMAGE [flags]\n"
      "\n"
      "Makes and removes pods through CRI, interleaved A B B A, on the host's network and on\n"
      "CNI's; up to 500 of ours and 200 of the peer's at a time. Takes some minutes and loads the\n"
      "node. Prints a table with verdicts.\n"
      "\n"
      "      --image IMAGE        an image of this node that has sh and sleep; needed\n"
      "      --handler NAME       our runtime handler (kuasar-runc)\n"
      "      --peer NAME          the handler to compare with (runc): containerd's own shim, with\n"
      "                           the same OCI runtime\n"
      "      --containerd PATH    containerd's socket (/run/containerd/containerd.sock)\n"
      "      --socket PATH        our daemon's ctl.sock (/run/kuasar-runc/ctl.sock)\n"
      "      --cgroup-parent DIR  cgroup of the pods\n"
      "      --rounds N           rounds of A B B A (15)\n"
      "      --most-pods N        the most pods at a time (500); rows that need more are left out\n"
      "      --kill               kill -9 the daemon with 100 pods, which live on, and measure "
      "how\n"
      "                           soon it serves again; systemd must restart it\n"
      "      --out DIR            write table.txt, samples.jsonl and cdf.svg there\n"
      "  -h, --help               print this text and exit\n"
      "  -v, --version            print the version and exit\n"
      "\n"
      "Exit status: 0, 1 when an operation failed or a promise is missed, 2 for a wrong command\n"
      "line.\n",
      version());
}

}  // namespace kuasar::bench
