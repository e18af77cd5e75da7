#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

namespace kuasar::sandbox {

/// The on-disk tree of one sandboxer; every name in it is made here.
///
///   <dir>/                              0711  tmpfs of our own, private mount
///     boot_id                                 kernel's boot id; another boot's tree is removed
///     lock                                    flock(2) of the one daemon on this directory
///     starts                            0600  how many daemons have begun here
///     crashed                           0600  not empty: the daemon before has crashed
///     mounted                                 a daemon has mounted <dir>, and may unmount it
///     task.sock                               Task API; the name is an ABI, containerd stores it
///     keeper.sock                             the keeper's socket
///     ctl.sock                          0600  kuasar-ctl's, while a daemon serves
///     ctl/<exec id>/                    0700  FIFOs of a process that kuasar-ctl runs
///     journal/                          0700  unanswered requests, one file per task connection
///     oci/                              0700  --root of the OCI runtime
///     pty/                              0700  console sockets, while a runtime runs
///     sandboxes/                        0711
///       <sandbox id>/                   0700  0710 and the group of the pod's root with a user
///                                             namespace
///         sandbox.json                  0600  state.v1.SandboxState
///         ns/                           0700
///           ipc uts pid user                  namespace pins (bind mounts of nsfs), as needed
///         files/                        0711  small tmpfs: what containers see, and write, below
///                                             /etc
///           hostname hosts resolv.conf  0644
///         tombstones.json             0600  state.v1.Tombstones
///         shm/                                mount point of the pod's /dev/shm
///         containers/                   0700
///           <container id>/             0700  the bundle that the OCI runtime gets
///             container.json            0600  state.v1.ContainerState
///             config.json                     rewritten OCI spec
///             runtime.log                     log of the OCI runtime's last call
///             init.pid                        pid file of the OCI runtime
///             pid-target                      pin of another container's PID namespace (TARGET)
///             lower/                          mapped lower directories, while a rootfs is mounted
///             exec-<exec id>.json             what an exec is to run, until it runs
///             exec-<exec id>.pid .log         pid file and log of its OCI runtime
///
/// Ids are validated (base/ids.h) before they come here.
class StatePaths {
 public:
  using Path = std::filesystem::path;

  explicit StatePaths(Path root) : root_(std::move(root)) {}

  const Path& root() const { return root_; }
  Path boot_id() const { return root_ / "boot_id"; }
  Path lock() const { return root_ / "lock"; }
  Path mount_mark() const { return root_ / "mounted"; }
  Path crash_mark() const { return root_ / "crashed"; }
  Path starts() const { return root_ / "starts"; }
  Path task_socket() const { return root_ / "task.sock"; }
  Path keeper_socket() const { return root_ / "keeper.sock"; }
  Path ctl_socket() const { return root_ / "ctl.sock"; }
  Path ctl_execs() const { return root_ / "ctl"; }
  Path ctl_exec(std::string_view id) const { return ctl_execs() / id; }
  Path journals() const { return root_ / "journal"; }
  Path runtime_root() const { return root_ / "oci"; }
  Path consoles() const { return root_ / "pty"; }
  Path sandboxes() const { return root_ / "sandboxes"; }

  Path sandbox(std::string_view id) const { return sandboxes() / id; }
  Path sandbox_file(std::string_view id) const { return sandbox(id) / "sandbox.json"; }
  Path tombstones(std::string_view id) const { return sandbox(id) / "tombstones.json"; }
  Path namespaces(std::string_view id) const { return sandbox(id) / "ns"; }
  /// `kind` as in /proc/PID/ns: "ipc", "uts", "pid", "user".
  Path namespace_pin(std::string_view id, std::string_view kind) const {
    return namespaces(id) / kind;
  }
  Path files(std::string_view id) const { return sandbox(id) / "files"; }
  Path hostname(std::string_view id) const { return files(id) / "hostname"; }
  Path hosts(std::string_view id) const { return files(id) / "hosts"; }
  Path resolv_conf(std::string_view id) const { return files(id) / "resolv.conf"; }
  Path shm(std::string_view id) const { return sandbox(id) / "shm"; }

  Path containers(std::string_view id) const { return sandbox(id) / "containers"; }
  Path container(std::string_view id, std::string_view container_id) const {
    return containers(id) / container_id;
  }
  Path container_file(std::string_view id, std::string_view container_id) const {
    return container(id, container_id) / "container.json";
  }
  Path config_json(std::string_view id, std::string_view container_id) const {
    return container(id, container_id) / "config.json";
  }
  Path runtime_log(std::string_view id, std::string_view container_id) const {
    return container(id, container_id) / "runtime.log";
  }
  Path init_pid(std::string_view id, std::string_view container_id) const {
    return container(id, container_id) / "init.pid";
  }
  Path pid_target_pin(std::string_view id, std::string_view container_id) const {
    return container(id, container_id) / "pid-target";
  }

 private:
  Path root_;
};

}  // namespace kuasar::sandbox
