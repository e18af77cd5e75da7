#include "daemon/daemon_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "base/words.h"
#include "daemon/metrics_address.h"
#include "otlp/exporter.h"

namespace kuasar::daemon {
namespace {

constexpr std::string_view kLogLevels = "error, warning, info, debug or trace";

std::string_view level_name(log::Level level) {
  switch (level) {
    case log::Level::kError: return "error";
    case log::Level::kWarning: return "warning";
    case log::Level::kInfo: return "info";
    case log::Level::kDebug: return "debug";
    case log::Level::kTrace: return "trace";
  }
  return "info";
}

// A TOML basic string.
std::string toml_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string in_words(const ConfigValue& value) {
  struct Words {
    std::string operator()(bool b) const { return b ? "true" : "false"; }
    std::string operator()(std::int64_t i) const { return std::to_string(i); }
    std::string operator()(const std::string& s) const { return toml_string(s); }
    std::string operator()(const OtherToml& other) const { return other.type; }
  };
  return std::visit(Words{}, value);
}

tl::unexpected<Error> wanted(std::string_view what, const ConfigValue& value) {
  return fail(Code::kInvalidArgument, "must be {}, not {}", what, in_words(value));
}

std::vector<std::string> split_key(std::string_view key) {
  std::vector<std::string> path;
  for (;;) {
    const std::size_t dot = key.find('.');
    path.emplace_back(key.substr(0, dot));
    if (dot == std::string_view::npos) return path;
    key.remove_prefix(dot + 1);
  }
}

std::string section_of(const std::vector<std::string>& path) {
  std::string section;
  for (std::size_t i = 0; i + 1 < path.size(); ++i) {
    if (i != 0) section += '.';
    section += path[i];
  }
  return section;
}

std::string place(const ConfigEntry& entry) {
  return fmt::format("{}:{}", entry.file, entry.line);
}

}  // namespace

void ConfigTable::add(std::string key, std::function<Result<>(const ConfigValue&)> store,
                      std::function<std::string()> print) {
  keys_.push_back(Key{split_key(key), std::move(store), std::move(print)});
}

void ConfigTable::add_string(std::string key, std::string* target) {
  const auto store = [target](const ConfigValue& value) -> Result<> {
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr || text->empty() || text->find('\0') != std::string::npos) {
      return wanted("a text that is not empty", value);
    }
    *target = *text;
    return {};
  };
  add(std::move(key), store, [target] { return toml_string(*target); });
}

void ConfigTable::add_path(std::string key, std::string* target) {
  const auto store = [target](const ConfigValue& value) -> Result<> {
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr || !text->starts_with('/') || text->find('\0') != std::string::npos) {
      return wanted("an absolute path", value);
    }
    *target = *text;
    return {};
  };
  add(std::move(key), store, [target] { return toml_string(*target); });
}

void ConfigTable::add_path_or(std::string key, std::string word, std::string* target) {
  const auto store = [target, word](const ConfigValue& value) -> Result<> {
    const auto* text = std::get_if<std::string>(&value);
    const bool path =
        text != nullptr && text->starts_with('/') && text->find('\0') == std::string::npos;
    if (!path && (text == nullptr || *text != word)) {
      return wanted(fmt::format("an absolute path or \"{}\"", word), value);
    }
    *target = *text;
    return {};
  };
  add(std::move(key), store, [target] { return toml_string(*target); });
}

void ConfigTable::add_word(std::string key, std::vector<std::string> words, std::string* target) {
  const auto store = [target, words = std::move(words)](const ConfigValue& value) -> Result<> {
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr || std::find(words.begin(), words.end(), *text) == words.end()) {
      return wanted(fmt::format("\"{}\"", fmt::join(words, "\" or \"")), value);
    }
    *target = *text;
    return {};
  };
  add(std::move(key), store, [target] { return toml_string(*target); });
}

void ConfigTable::add_checked(std::string key, std::string* target,
                              std::function<Result<>(const std::string&)> check) {
  const auto store = [target, check = std::move(check)](const ConfigValue& value) -> Result<> {
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr) return wanted("a text", value);
    CHECK_OK(check(*text));
    *target = *text;
    return {};
  };
  add(std::move(key), store, [target] { return toml_string(*target); });
}

void ConfigTable::add_bool(std::string key, bool* target) {
  const auto store = [target](const ConfigValue& value) -> Result<> {
    const auto* flag = std::get_if<bool>(&value);
    if (flag == nullptr) return wanted("true or false", value);
    *target = *flag;
    return {};
  };
  add(std::move(key), store, [target] { return *target ? "true" : "false"; });
}

void ConfigTable::add_integer(std::string key, std::int64_t* target, std::int64_t min,
                              std::int64_t max) {
  const auto store = [target, min, max](const ConfigValue& value) -> Result<> {
    const auto* number = std::get_if<std::int64_t>(&value);
    if (number == nullptr || *number < min || *number > max) {
      return wanted(fmt::format("an integer from {} to {}", min, max), value);
    }
    *target = *number;
    return {};
  };
  add(std::move(key), store, [target] { return std::to_string(*target); });
}

void ConfigTable::add_seconds(std::string key, std::chrono::seconds* target, std::int64_t min,
                              std::int64_t max) {
  const auto store = [target, min, max](const ConfigValue& value) -> Result<> {
    const auto* number = std::get_if<std::int64_t>(&value);
    if (number == nullptr || *number < min || *number > max) {
      return wanted(fmt::format("a whole number of seconds from {} to {}", min, max), value);
    }
    *target = std::chrono::seconds(*number);
    return {};
  };
  add(std::move(key), store, [target] { return std::to_string(target->count()); });
}

void ConfigTable::add_log_level(std::string key, log::Level* target) {
  const auto store = [target](const ConfigValue& value) -> Result<> {
    const auto* text = std::get_if<std::string>(&value);
    const auto level = text != nullptr ? log::parse_level(*text) : std::nullopt;
    if (!level) return wanted(kLogLevels, value);
    *target = *level;
    return {};
  };
  add(std::move(key), store, [target] { return toml_string(level_name(*target)); });
}

const ConfigTable::Key* ConfigTable::find(const std::vector<std::string>& path) const {
  const auto it =
      std::find_if(keys_.begin(), keys_.end(), [&](const Key& key) { return key.path == path; });
  return it != keys_.end() ? &*it : nullptr;
}

Error ConfigTable::unknown_key(const ConfigEntry& entry) const {
  const std::string section = section_of(entry.path);
  // Keys of the same section are likelier to be meant than equally near ones elsewhere.
  std::vector<std::string> here;
  std::vector<std::string> elsewhere;
  for (const Key& key : keys_) {
    const bool same = section_of(key.path) == section;
    (same ? here : elsewhere).push_back(key.path.back());
  }
  std::optional<std::string> nearest = nearest_word(entry.path.back(), here);
  if (!nearest) nearest = nearest_word(entry.path.back(), elsewhere);
  return Error::make(Code::kInvalidArgument, "{}: unknown key {}{}{}", place(entry),
                     toml_string(entry.path.back()),
                     section.empty() ? "" : fmt::format(" in [{}]", section),
                     nearest ? fmt::format("; did you mean \"{}\"?", *nearest) : "");
}

Result<> ConfigTable::apply(const std::vector<ConfigEntry>& entries) const {
  for (const ConfigEntry& entry : entries) {
    const Key* key = find(entry.path);
    if (key == nullptr) return fail(unknown_key(entry));
    Result<> stored = key->store(entry.value);
    if (!stored) {
      return fail(
          std::move(stored).error().context("{}: {}", place(entry), fmt::join(entry.path, ".")));
    }
  }
  return {};
}

Result<> ConfigTable::set(std::string_view key, std::string_view flag,
                          const std::string& text) const {
  const Key* found = find(split_key(key));
  if (found == nullptr) return fail(Code::kInternal, "no configuration key {}", key);
  Result<> stored = found->store(ConfigValue(text));
  if (!stored) return fail(std::move(stored).error().context("{}", flag));
  return {};
}

std::string ConfigTable::dump() const {
  std::vector<const Key*> sorted;
  for (const Key& key : keys_) sorted.push_back(&key);
  // Sections after the top level, each once.
  std::stable_sort(sorted.begin(), sorted.end(), [](const Key* a, const Key* b) {
    return section_of(a->path) < section_of(b->path);
  });
  std::string text;
  std::string section;
  for (const Key* key : sorted) {
    if (section_of(key->path) != section) {
      section = section_of(key->path);
      text += fmt::format("\n[{}]\n", section);
    }
    text += fmt::format("{} = {}\n", key->path.back(), key->print());
  }
  return text;
}

void add_daemon_keys(ConfigTable& table, DaemonConfig& config) {
  table.add_path("listen", &config.listen);
  table.add_path("dir", &config.dir);
  table.add_path("containerd", &config.containerd);
  table.add_path_or("keeper", DaemonConfig::kOwnKeeper, &config.keeper);
  table.add_seconds("orphan_grace_secs", &config.orphan_grace, 1, 3600);
  table.add_log_level("log_level", &config.log_level);
  table.add_checked("metrics", &config.metrics, [](const std::string& text) -> Result<> {
    TRY([[maybe_unused]] const auto address, parse_metrics_address(text));
    return {};
  });
  table.add_checked("otlp", &config.otlp, otlp::check_target);
}

Result<> load_config(const DaemonDefaults& defaults, const Args& args, const ConfigTable& table) {
  TRY(const std::vector<ConfigEntry> entries,
      read_config_files(args.config.value_or(defaults.config), args.config.has_value()));
  CHECK_OK(table.apply(entries));

  struct Override {
    std::string_view key;
    std::string_view flag;
    const std::optional<std::string>& value;
  };
  const Override overrides[] = {
      {"listen", "--listen", args.listen},
      {"dir", "--dir", args.dir},
      {"containerd", "--containerd", args.containerd},
      {"keeper", "--keeper", args.keeper},
      {"log_level", "--log-level", args.log_level},
  };
  for (const Override& o : overrides) {
    if (o.value) CHECK_OK(table.set(o.key, o.flag, *o.value));
  }
  return {};
}

}  // namespace kuasar::daemon
