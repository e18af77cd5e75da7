#include "oci/runtime_argv.h"

namespace kuasar::oci {
namespace {

Argv begin(const GlobalFlags& global, std::string_view verb) {
  Argv argv = {global.binary,   "--root",       global.root, "--log",
               global.log_file, "--log-format", "json"};
  if (global.systemd_cgroup) argv.emplace_back("--systemd-cgroup");
  argv.emplace_back(verb);
  return argv;
}

}  // namespace

Argv create_argv(const GlobalFlags& global, const CreateFlags& create, std::string_view id) {
  Argv argv = begin(global, "create");
  argv.insert(argv.end(), {"--bundle", create.bundle, "--pid-file", create.pid_file});
  if (create.no_pivot) argv.emplace_back("--no-pivot");
  if (create.no_new_keyring) argv.emplace_back("--no-new-keyring");
  if (!create.console_socket.empty()) {
    argv.insert(argv.end(), {"--console-socket", create.console_socket});
  }
  argv.emplace_back(id);
  return argv;
}

Argv start_argv(const GlobalFlags& global, std::string_view id) {
  Argv argv = begin(global, "start");
  argv.emplace_back(id);
  return argv;
}

Argv exec_argv(const GlobalFlags& global, const ExecFlags& exec, std::string_view id) {
  Argv argv = begin(global, "exec");
  argv.insert(argv.end(),
              {"--detach", "--process", exec.process_file, "--pid-file", exec.pid_file});
  if (!exec.console_socket.empty()) {
    argv.insert(argv.end(), {"--console-socket", exec.console_socket});
  }
  argv.emplace_back(id);
  return argv;
}

Argv checkpoint_argv(const GlobalFlags& global, const CheckpointFlags& checkpoint,
                     std::string_view id) {
  Argv argv = begin(global, "checkpoint");
  argv.insert(argv.end(),
              {"--image-path", checkpoint.image_path, "--work-path", checkpoint.work_path});
  if (checkpoint.leave_running) argv.emplace_back("--leave-running");
  if (checkpoint.open_tcp) argv.emplace_back("--tcp-established");
  if (checkpoint.external_unix_sockets) argv.emplace_back("--ext-unix-sk");
  if (checkpoint.shell_job) argv.emplace_back("--shell-job");
  if (checkpoint.file_locks) argv.emplace_back("--file-locks");
  for (const std::string& type : checkpoint.empty_namespaces) {
    argv.insert(argv.end(), {"--empty-ns", type});
  }
  if (!checkpoint.cgroups_mode.empty()) {
    argv.insert(argv.end(), {"--manage-cgroups-mode", checkpoint.cgroups_mode});
  }
  argv.emplace_back(id);
  return argv;
}

Argv delete_argv(const GlobalFlags& global, std::string_view id, bool force) {
  Argv argv = begin(global, "delete");
  if (force) argv.emplace_back("--force");
  argv.emplace_back(id);
  return argv;
}

}  // namespace kuasar::oci
