#pragma once

#include <string>
#include <vector>

#include "worker/engine.h"

namespace kuasar::wasm {

/// The memory of this process that /proc/PID/cmdline shows, and /proc/PID/environ.
struct CommandLine {
  char* begin = nullptr;
  char* end = nullptr;
  char* environment = nullptr;
  char* environment_end = nullptr;
};

/// Makes it show these words, as far as there is room.
void show_words(CommandLine line, const std::vector<std::string>& words);

/// What a child has of its zygote.
struct Inheritance {
  Engine& engine;
  /// See artifact.h; empty: no native code is looked for.
  std::string stamp;
  /// /dev/null.
  int null_fd = -1;
  /// Standard input of a child that has none: the reading end of a pipe whose writer is closed.
  /// WasmEdge takes the device /dev/null for a terminal, and epoll(7) does not take it at all.
  int no_input_fd = -1;
  int own_pid_namespace = -1;
  CommandLine command_line;
  /// The SHA-256 of the module that is loaded already; empty: a child loads its own.
  std::string loaded;
};

/// The process of one container: confines itself by the plan, loads the module as nobody in
/// particular, waits to be started, runs it and ends. Or compiles a module in the same confinement,
/// or becomes the zygote of one. `fds` are the request's descriptors; `in_cgroup`: it was born into
/// Request::cgroup.
[[noreturn]] void run_child(const Inheritance& zygote, const std::vector<int>& fds, bool in_cgroup);

/// Ends the process with the words on its control socket, "E" before them.
[[noreturn]] void refuse(int control, const std::string& why);
/// The same with "<what>: <strerror(errno)>".
[[noreturn]] void refuse_errno(int control, const std::string& what);

}  // namespace kuasar::wasm
