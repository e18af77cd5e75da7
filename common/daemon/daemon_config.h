#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "daemon/args.h"
#include "daemon/toml_reader.h"

namespace kuasar::daemon {

/// The settings that every sandboxer has.
struct DaemonConfig {
  /// Unix socket of the sandbox Controller.
  std::string listen;
  /// State directory.
  std::string dir;
  /// containerd's gRPC socket; its ttrpc socket is this name with ".ttrpc" behind it.
  std::string containerd = "/run/containerd/containerd.sock";
  /// Socket of the keeper's own service; kOwnKeeper: the daemon starts one and ends it when it
  /// stops with nothing left to keep.
  std::string keeper = kOwnKeeper;
  log::Level log_level = log::Level::kInfo;
  /// A pod that containerd does not know for this long is removed.
  std::chrono::seconds orphan_grace{30};
  /// See metrics_address.h.
  std::string metrics = "off";
  /// See otlp::check_target().
  std::string otlp = "off";

  static constexpr const char* kOwnKeeper = "own";
};

/// Binds configuration keys to the fields of a plain struct: the only list of a sandboxer's keys.
/// Used once at start-up; the targets must outlive it.
class ConfigTable {
 public:
  /// Any text but an empty one.
  void add_string(std::string key, std::string* target);
  /// An absolute path.
  void add_path(std::string key, std::string* target);
  /// An absolute path, or this one word.
  void add_path_or(std::string key, std::string word, std::string* target);
  /// One of these words.
  void add_word(std::string key, std::vector<std::string> words, std::string* target);
  /// A text that `check` accepts; its words complete "<file>:<line>: <key>: ".
  void add_checked(std::string key, std::string* target,
                   std::function<Result<>(const std::string&)> check);
  void add_bool(std::string key, bool* target);
  void add_integer(std::string key, std::int64_t* target, std::int64_t min, std::int64_t max);
  void add_seconds(std::string key, std::chrono::seconds* target, std::int64_t min,
                   std::int64_t max);
  void add_log_level(std::string key, log::Level* target);

  /// Sets the targets in the order of the entries. An unknown key, a wrong type and a value out
  /// of range are refused with "file:line: ", the key, and what would be right.
  Result<> apply(const std::vector<ConfigEntry>& entries) const;

  /// Sets one key from a command line flag; `flag` is for the message.
  Result<> set(std::string_view key, std::string_view flag, const std::string& text) const;

  /// All keys with their effective values, as TOML that reads back to the same.
  std::string dump() const;

 private:
  struct Key {
    std::vector<std::string> path;
    /// Stores a value, or says in words what it should have been.
    std::function<Result<>(const ConfigValue&)> store;
    /// The effective value as TOML.
    std::function<std::string()> print;
  };
  void add(std::string key, std::function<Result<>(const ConfigValue&)> store,
           std::function<std::string()> print);
  const Key* find(const std::vector<std::string>& path) const;
  Error unknown_key(const ConfigEntry& entry) const;

  std::vector<Key> keys_;
};

/// Adds the keys listen, dir, containerd, keeper, log_level, metrics, otlp and orphan_grace_secs.
void add_daemon_keys(ConfigTable& table, DaemonConfig& config);

/// Fills everything that `table` is bound to, which must hold the daemon keys and be preset with
/// the defaults: configuration files first, the command line over them.
Result<> load_config(const DaemonDefaults& defaults, const Args& args, const ConfigTable& table);

}  // namespace kuasar::daemon
