#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kuasar::oci {

/// Command lines of a runtime with runc's interface (runc, crun, youki). Pure: golden tests compare
/// them whole.
using Argv = std::vector<std::string>;

/// What stands before the verb.
struct GlobalFlags {
  /// The program, argv[0].
  std::string binary;
  /// Where the runtime keeps its state.
  std::string root;
  /// The runtime's log; its lines are JSON objects.
  std::string log_file;
  bool systemd_cgroup = false;
};

struct CreateFlags {
  std::string bundle;
  std::string pid_file;
  bool no_pivot = false;
  bool no_new_keyring = false;
  /// For a terminal; empty without one.
  std::string console_socket;
};

struct ExecFlags {
  /// An OCI Process as JSON.
  std::string process_file;
  std::string pid_file;
  /// For a terminal; empty without one.
  std::string console_socket;
};

Argv create_argv(const GlobalFlags& global, const CreateFlags& create, std::string_view id);
Argv start_argv(const GlobalFlags& global, std::string_view id);
/// The runtime ends once the process runs (--detach).
Argv exec_argv(const GlobalFlags& global, const ExecFlags& exec, std::string_view id);
Argv delete_argv(const GlobalFlags& global, std::string_view id, bool force);

}  // namespace kuasar::oci
