#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "support/lab.h"

// Parts of Lab (lab.cc) that need nothing of its state.

namespace kuasar::test {

/// What the configuration files of a lab say; all paths absolute.
struct LabPlan {
  std::filesystem::path root;
  std::filesystem::path cni_plugins;
  /// The bridge.
  std::string name;
  /// "10.1.2": pods live in 10.1.2.0/24.
  std::string subnet;
  SandboxerUnderTest sandboxer;
  std::filesystem::path sandboxer_socket;
  /// BinaryName of the handler, and of containerd's own; empty: none.
  std::filesystem::path runtime;
  std::string log_level;
  /// The second handler and its BinaryName.
  std::string named_handler;
  std::filesystem::path named_runtime;
  /// A second sandboxer, and its socket.
  std::optional<SandboxerUnderTest> neighbour = std::nullopt;
  std::filesystem::path neighbour_socket = {};
};
/// containerd's configuration (version 3) and the CNI network list, as text.
std::string containerd_config(const LabPlan& plan);
std::string cni_config(const LabPlan& plan);

/// Mount points of every cgroup hierarchy of this machine.
std::vector<std::filesystem::path> lab_cgroup_hierarchies();

/// Kills and removes everything that carries a lab's root or name: processes, cgroups, mounts, the
/// bridge; the files below `root` except log/. Idempotent; returns what could not be removed.
std::vector<std::string> remove_lab(const std::filesystem::path& root, const std::string& name);

/// Removes the labs whose test is gone: a lab's bridge carries its owner's pid and root.
void remove_stale_labs();
std::string lab_link_alias(const std::filesystem::path& root);

/// The pid of the keeper that works below a sandboxer's --dir; 0 when there is none.
pid_t lab_keeper(const std::filesystem::path& dir);

/// Lines of a file that end so.
std::size_t count_lines(const std::filesystem::path& file, const std::string& end);

/// Whether a connect to a listening AF_UNIX socket succeeds.
bool socket_accepts(const std::filesystem::path& socket);

}  // namespace kuasar::test
