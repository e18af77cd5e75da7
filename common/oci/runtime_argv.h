#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kuasar::oci {

/// Command lines of a runtime with runc's interface: runc, crun and youki take the same words.
/// Pure: golden tests compare them whole.
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

struct CheckpointFlags {
  std::string image_path;
  std::string work_path;
  bool leave_running = false;
  bool open_tcp = false;
  bool external_unix_sockets = false;
  /// A terminal from outside the container.
  bool shell_job = false;
  bool file_locks = false;
  std::vector<std::string> empty_namespaces;
  /// soft, full, strict or ignore; empty: the runtime's default.
  std::string cgroups_mode;
};

Argv create_argv(const GlobalFlags& global, const CreateFlags& create, std::string_view id);
Argv start_argv(const GlobalFlags& global, std::string_view id);
/// The runtime ends once the process runs (--detach).
Argv exec_argv(const GlobalFlags& global, const ExecFlags& exec, std::string_view id);
Argv checkpoint_argv(const GlobalFlags& global, const CheckpointFlags& checkpoint,
                     std::string_view id);
Argv delete_argv(const GlobalFlags& global, std::string_view id, bool force);

}  // namespace kuasar::oci
