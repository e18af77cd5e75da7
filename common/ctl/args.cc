#include "ctl/args.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/version.h"
#include "base/words.h"

namespace kuasar::ctl {
namespace {

struct Verb {
  std::string_view name;
  Command command;
};
constexpr std::array<Verb, 10> kVerbs{{
    {"list", Command::kList},
    {"inspect", Command::kInspect},
    {"exec", Command::kExec},
    {"stats", Command::kStats},
    {"health", Command::kHealth},
    {"doctor", Command::kDoctor},
    {"config", Command::kConfigCheck},
    {"bench", Command::kBench},
    {"help", Command::kHelp},
    {"version", Command::kVersion},
}};

using Store = Result<> (*)(Args& args, const std::string& value);

struct Flag {
  std::string_view name;
  char letter;
  bool has_value;
  Store store;
};

Result<> store_output(Args& args, const std::string& value) {
  if (value != "json" && value != "table") {
    return fail(Code::kInvalidArgument, "--output is json or table, not \"{}\"", value);
  }
  args.json = value == "json";
  return {};
}

Result<> store_dir(Args& args, const std::string& value) {
  args.sockets.push_back(value + "/ctl.sock");
  return {};
}

Result<> store_env(Args& args, const std::string& value) {
  if (value.find('=') == std::string::npos || value.front() == '=') {
    return fail(Code::kInvalidArgument, "--env wants NAME=VALUE, not \"{}\"", value);
  }
  args.env.push_back(value);
  return {};
}

Result<> store_socket(Args& args, const std::string& value) {
  args.sockets.push_back(value);
  return {};
}

template <auto Member>
Result<> store_text(Args& args, const std::string& value) {
  args.*Member = value;
  return {};
}

template <auto Member>
Result<> store_true(Args& args, const std::string&) {
  args.*Member = true;
  return {};
}

Result<> store_help(Args& args, const std::string&) {
  args.command = Command::kHelp;
  return {};
}

Result<> store_version(Args& args, const std::string&) {
  args.command = Command::kVersion;
  return {};
}

constexpr std::array<Flag, 13> kFlags{{
    {"output", 'o', true, store_output},
    {"socket", '\0', true, store_socket},
    {"dir", 'd', true, store_dir},
    {"quiet", 'q', false, store_true<&Args::quiet>},
    {"timing", '\0', false, store_true<&Args::timing>},
    {"interactive", 'i', false, store_true<&Args::input>},
    {"tty", 't', false, store_true<&Args::terminal>},
    {"env", 'e', true, store_env},
    {"cwd", 'w', true, store_text<&Args::cwd>},
    {"containerd", '\0', true, store_text<&Args::containerd>},
    {"containerd-config", '\0', true, store_text<&Args::containerd_config>},
    {"help", 'h', false, store_help},
    {"version", 'v', false, store_version},
}};

const Flag* find_flag(std::string_view name) {
  const auto found = std::find_if(kFlags.begin(), kFlags.end(),
                                  [&](const Flag& flag) { return flag.name == name; });
  return found == kFlags.end() ? nullptr : &*found;
}

const Flag* find_letter(char letter) {
  const auto found = std::find_if(kFlags.begin(), kFlags.end(),
                                  [&](const Flag& flag) { return flag.letter == letter; });
  return letter == '\0' || found == kFlags.end() ? nullptr : &*found;
}

template <typename Names>
std::string hint(std::string_view word, const Names& all, std::string_view before) {
  std::vector<std::string> names;
  for (const auto& one : all) names.emplace_back(one.name);
  const auto nearest = nearest_word(word, names);
  return nearest ? fmt::format("; did you mean {}{}?", before, *nearest) : "";
}

/// Goes through the arguments once.
class Parser {
 public:
  explicit Parser(const std::vector<std::string>& arguments) : rest_(arguments) {}

  Result<Args> parse() {
    while (next_ < rest_.size()) {
      const std::string& word = rest_[next_++];
      if (word == "--") {
        args_.argv.assign(rest_.begin() + static_cast<std::ptrdiff_t>(next_), rest_.end());
        dashes_ = true;
        break;
      }
      if (word.size() > 1 && word[0] == '-') {
        CHECK_OK(word[1] == '-' ? take_flag(word.substr(2)) : take_letters(word));
      } else {
        words_.push_back(word);
        if (words_.size() == 1 && word == "bench") return take_bench();
      }
    }
    if (settled()) return args_;
    CHECK_OK(take_words());
    return args_;
  }

 private:
  /// --help explains everything else, so that it wins; then the version.
  bool settled() {
    if (help_) args_.command = Command::kHelp;
    if (!help_ && version_) args_.command = Command::kVersion;
    return help_ || version_;
  }

  Result<> apply(const Flag& flag, std::string_view spelled, const std::string* value) {
    if (!flag.has_value && value != nullptr) {
      return fail(Code::kInvalidArgument, "{} takes no value (\"{}\" was given)", spelled, *value);
    }
    if (flag.has_value && value == nullptr) {
      if (next_ == rest_.size()) {
        return fail(Code::kInvalidArgument, "{} needs a value", spelled);
      }
      value = &rest_[next_++];
    }
    if (flag.has_value && value->empty()) {
      return fail(Code::kInvalidArgument, "the value of {} is empty", spelled);
    }
    help_ = help_ || flag.store == store_help;
    version_ = version_ || flag.store == store_version;
    static const std::string kNone;
    return flag.store(args_, value != nullptr ? *value : kNone);
  }

  Result<> take_flag(const std::string& spelled) {
    const std::size_t equals = spelled.find('=');
    const std::string name = spelled.substr(0, equals);
    const Flag* flag = find_flag(name);
    if (flag == nullptr) {
      return fail(Code::kInvalidArgument,
                  "unknown flag --{}{} (\"kuasar-ctl --help\" lists the flags)", name,
                  hint(name, kFlags, "--"));
    }
    if (equals == std::string::npos) return apply(*flag, "--" + name, nullptr);
    const std::string value = spelled.substr(equals + 1);
    return apply(*flag, "--" + name, &value);
  }

  Result<> take_letters(const std::string& word) {
    for (std::size_t i = 1; i < word.size(); ++i) {
      const Flag* flag = find_letter(word[i]);
      const std::string spelled = fmt::format("-{}", word[i]);
      if (flag == nullptr || (flag->has_value && i + 1 < word.size())) {
        return fail(Code::kInvalidArgument,
                    "unknown flag {} (\"kuasar-ctl --help\" lists the flags)",
                    flag == nullptr ? spelled : word);
      }
      CHECK_OK(apply(*flag, spelled, nullptr));
    }
    return {};
  }

  Result<> take_words() {
    if (words_.empty()) {
      return fail(Code::kInvalidArgument, "no command (\"kuasar-ctl --help\" lists them)");
    }
    const auto verb = std::find_if(kVerbs.begin(), kVerbs.end(),
                                   [&](const Verb& one) { return one.name == words_[0]; });
    if (verb == kVerbs.end()) {
      return fail(Code::kInvalidArgument,
                  "unknown command \"{}\"{} (\"kuasar-ctl --help\" lists them)", words_[0],
                  hint(words_[0], kVerbs, ""));
    }
    args_.command = verb->command;
    words_.erase(words_.begin());
    if (dashes_ && args_.command != Command::kExec) {
      return fail(Code::kInvalidArgument, "\"--\" belongs to exec only");
    }
    switch (args_.command) {
      case Command::kInspect: return take_object("a pod: an id, the beginning of one, or a name");
      case Command::kExec: return take_exec();
      case Command::kConfigCheck: return take_config();
      default: break;
    }
    if (words_.empty()) return {};
    return fail(Code::kInvalidArgument, "unexpected argument \"{}\": {} takes flags only",
                words_[0], verb->name);
  }

  Result<> take_object(std::string_view what) {
    if (words_.size() != 1) {
      return fail(Code::kInvalidArgument, "name {}; {} arguments were given", what, words_.size());
    }
    args_.object = words_[0];
    return {};
  }

  Result<> take_exec() {
    CHECK_OK(take_object("one container before \"--\" and the command behind it"));
    if (args_.argv.empty()) {
      return fail(
          Code::kInvalidArgument,
          "no command to run: kuasar-ctl exec [-i] [-t] CONTAINER -- COMMAND [ARGUMENT...]");
    }
    return {};
  }

  /// Everything behind the word is for kuasar-bench, which knows it.
  Result<Args> take_bench() {
    args_.command = Command::kBench;
    args_.argv.assign(rest_.begin() + static_cast<std::ptrdiff_t>(next_), rest_.end());
    return args_;
  }

  Result<> take_config() {
    if (words_.empty() || words_[0] != "check") {
      return fail(Code::kInvalidArgument, "config has one subcommand: config check [FILE...]");
    }
    args_.files.assign(words_.begin() + 1, words_.end());
    return {};
  }

  const std::vector<std::string>& rest_;
  std::size_t next_ = 0;
  std::vector<std::string> words_;
  bool dashes_ = false;
  bool help_ = false;
  bool version_ = false;
  Args args_;
};

}  // namespace

Result<Args> parse_args(const std::vector<std::string>& arguments) {
  return Parser(arguments).parse();
}

std::string help_text() {
  return fmt::format(
      "kuasar-ctl {} - looks into the sandboxers of this node\n"
      "\n"
      "Usage: kuasar-ctl [flags] COMMAND\n"
      "\n"
      "  list                     pods and their containers (-q: pods' ids only)\n"
      "  inspect POD              everything known of a pod, as JSON; POD is an id, the beginning\n"
      "                           of one, or a name\n"
      "    --timing               what its start took, step by step and wait by wait\n"
      "  exec CONTAINER -- COMMAND [ARGUMENT...]\n"
      "                           runs a command in a container (an id, the beginning of one, or\n"
      "                           POD/NAME); its exit code is the command's\n"
      "    -i, --interactive      gives it our standard input\n"
      "    -t, --tty              gives it a terminal\n"
      "    -e, --env NAME=VALUE   sets a variable; may be repeated\n"
      "    -w, --cwd DIR          runs it there\n"
      "  stats                    processor time, memory and processes of each container\n"
      "  health                   how the daemons are, and what is wrong\n"
      "  doctor                   checks the node: containerd and its configuration, kernel,\n"
      "                           cgroups, OCI runtimes; also without a daemon\n"
      "    --containerd PATH      containerd's socket\n"
      "    --containerd-config F  containerd's configuration file\n"
      "  config check [FILE...]   reads configuration files as the sandboxers do\n"
      "  bench --image IMAGE      measures our handler beside containerd's own shim (bench "
      "--help)\n"
      "\n"
      "  -o, --output FORMAT      table (default) or json\n"
      "      --socket PATH        talk to this daemon only; may be repeated\n"
      "  -d, --dir DIR            the same, by its state directory\n"
      "                           (default: every /run/kuasar-*/ctl.sock)\n"
      "  -h, --help               print this text and exit\n"
      "  -v, --version            print the version and exit\n"
      "\n"
      "Exit status: 0, 1 for a failure or a finding, 2 for a wrong command line.\n",
      version());
}

std::string version_text() {
  return fmt::format("kuasar-ctl {} (Kuasar)", version());
}

}  // namespace kuasar::ctl
