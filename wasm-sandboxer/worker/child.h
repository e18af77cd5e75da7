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

/// The process of one container: confines itself by the plan, loads the module as nobody in
/// particular, waits to be started, runs it and ends. `fds` are the request's descriptors;
/// `null_fd` is /dev/null.
[[noreturn]] void run_child(Engine& engine, const std::vector<int>& fds, int null_fd,
                            CommandLine command_line);

/// Ends the process with the words on its control socket.
[[noreturn]] void refuse(int control, const std::string& why);
/// The same with "<what>: <strerror(errno)>".
[[noreturn]] void refuse_errno(int control, const std::string& what);

}  // namespace kuasar::wasm
