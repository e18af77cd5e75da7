#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/census.h"
#include "support/cri_client.h"
#include "support/process.h"

namespace kuasar::test {

/// One row of the e2e table: a sandboxer and the runtime handler by which pods choose it.
struct SandboxerUnderTest {
  /// In words, for messages: "runc-sandboxer".
  std::string name;
  std::string handler;
  /// The daemon's executable, to be found in KUASAR_LAB_BIN. Empty: containerd's own
  /// pause-container sandboxer, which runs the table as a check of the table itself.
  std::string program;

  bool ours() const { return !program.empty(); }
  /// Its containers are WebAssembly modules.
  bool wasm() const { return program == "wasm-sandboxer"; }
};

/// A second sandboxer of a lab, on the same containerd. It is started with the lab and ends with
/// it.
struct Neighbour {
  SandboxerUnderTest sandboxer;
  /// The text of its TOML file.
  std::string config;
};

/// Names of the images that every lab holds; both come with busybox's applets.
inline constexpr char kBusyboxImage[] = "docker.io/library/kuasar-busybox:1";
inline constexpr char kToolsImage[] = "docker.io/library/kuasar-tools:1";
/// The modules of test/wasm and nothing else.
inline constexpr char kWasmImage[] = "docker.io/library/kuasar-wasm:1";

/// A private containerd with a sandboxer: own root, state, sockets, CNI network, cgroup parent and
/// pod network namespaces, all below one short directory. Several labs may live at a time.
//
/// The environment says where things are (tools/dev sets it):
///   KUASAR_LAB_PREFIX  prefix with usr/bin/{containerd,ctr,containerd-shim-runc-v2},
///   usr/sbin/runc,
///                      usr/lib/cni; KUASAR_CONTAINERD names another containerd
///   KUASAR_LAB_IMAGES  directory of image tars
///   KUASAR_LAB_BIN     directory of the sandboxers; default: bin/ of the build tree
///   KUASAR_LAB_DIR     where labs are made; default: /tmp
///   KUASAR_LAB_WASMTIME  libwasmtime.so; tests of that engine say SKIPPED without it
///   KUASAR_LAB_WASMEDGE  prefix with usr/lib/*/libwasmedge.so.0 and the C library that it needs
///   KUASAR_LAB_RUNTIME the OCI runtime that our handlers name to containerd (BinaryName); without
///                      it the sandboxer's own default, runc of the prefix
//
/// Owned by the test (or the demo); used from one thread, except cri(). The destructor stops both
/// daemons, kills what they left running, removes mounts, cgroups, links and every file but the
/// logs. What a killed test left behind is removed when the next lab is made. Failures to start
/// throw std::runtime_error with the tails of the logs.
class Lab {
 public:
  /// Empty when a lab can be made here, else the reason why not.
  static std::string unavailable();

  /// Starts the sandboxer (`config` is the text of its TOML file), then containerd, both with that
  /// log level, and waits until CRI answers and knows the images.
  explicit Lab(SandboxerUnderTest sandboxer, const std::string& config = "",
               std::optional<Neighbour> neighbour = std::nullopt, std::string log_level = "debug");
  ~Lab();
  Lab(const Lab&) = delete;
  Lab& operator=(const Lab&) = delete;

  const SandboxerUnderTest& sandboxer() const { return sandboxer_; }
  CriClient& cri() { return *cri_; }
  /// Both daemons run.
  bool healthy();

  void start_sandboxer();
  /// The same without waiting until it serves.
  void spawn_sandboxer();
  /// SIGTERM and the wait for the end; returns the exit code.
  int stop_sandboxer();
  void kill_sandboxer();
  pid_t sandboxer_pid() const { return sandboxer_process_.pid(); }
  /// 0 when there is none.
  pid_t keeper_pid() const;
  /// SIGKILL, and the wait until it is gone.
  void kill_keeper();
  /// SIGKILL to the daemon and its keeper in the same moment.
  void kill_both();

  /// Also waits for CRI's recovery.
  void start_containerd();
  int stop_containerd();
  void kill_containerd();
  pid_t containerd_pid() const { return containerd_process_.pid(); }

  const std::filesystem::path& root() const { return root_; }
  /// The sandboxer's --dir.
  std::filesystem::path dir() const { return root_ / "run" / "kuasar"; }
  std::filesystem::path listen() const { return root_ / "run" / "sandboxer.sock"; }
  std::filesystem::path containerd_socket() const { return root_ / "run" / "containerd.sock"; }
  std::filesystem::path containerd_state() const { return root_ / "state"; }
  /// A second runtime handler of the same sandboxer, with a BinaryName always, and that.
  std::string named_handler() const { return sandboxer_.handler + "-named"; }
  std::filesystem::path named_runtime() const;
  /// The text of containerd's config.toml.
  std::string containerd_toml() const;
  /// The bundle of a container while containerd holds it.
  std::filesystem::path bundle(const std::string& container) const;
  /// For log directories, volumes and other files of pods.
  std::filesystem::path pods() const { return root_ / "pods"; }
  /// Moves both daemons and the keeper, and so all that they will start, into a cgroup of their own
  /// where CPU time is counted.
  void count_cpu();
  /// "/<name>", an existing cgroup in every hierarchy.
  std::string cgroup_parent() const { return "/" + name_; }
  /// The bridge of the pod network; also the name of the lab.
  const std::string& name() const { return name_; }
  /// Pods get addresses "<prefix>.x".
  const std::string& subnet_prefix() const { return subnet_; }

  /// Whether the sandboxer was built with failpoints (common/base/failpoint.h).
  bool has_failpoints() const;
  /// Arms one: "kill" or "stop" when the sandboxer comes to the point. disarm() is true when it
  /// was still armed.
  void arm(const std::string& failpoint, const std::string& action);
  bool disarm(const std::string& failpoint);

  /// What a census of a test in this lab looks at, with the daemons' pids of now.
  CensusScope census_scope() const;

  std::filesystem::path sandboxer_log() const { return root_ / "log" / "sandboxer.log"; }
  std::filesystem::path containerd_log() const { return root_ / "log" / "containerd.log"; }
  std::string log_tails(std::size_t lines) const;

 private:
  void make_tree(const std::string& config);
  void make_network();
  void make_cgroups() const;
  void import_images();
  void start_neighbour();
  void await_containerd();
  std::vector<std::string> environment() const;
  std::vector<std::string> sandboxer_environment() const;
  [[noreturn]] void give_up(const std::string& words) const;
  void tear_down();

  SandboxerUnderTest sandboxer_;
  std::string log_level_;
  std::optional<Neighbour> neighbour_;
  std::filesystem::path prefix_;
  std::filesystem::path root_;
  std::string name_;
  std::string subnet_;
  Child sandboxer_process_;
  /// Of the last daemon that was stopped or killed.
  std::optional<std::chrono::steady_clock::time_point> away_since_;
  Child neighbour_process_;
  Child containerd_process_;
  std::unique_ptr<CriClient> cri_;
};

/// The sandboxers that the e2e table runs: ours, or, with KUASAR_LAB_HANDLER=runc in the
/// environment, containerd's own.
std::vector<SandboxerUnderTest> sandboxers_under_test();
/// The wasm kind, whose containers cannot run the table's shell scripts: it has cases of its own.
SandboxerUnderTest wasm_sandboxer();

}  // namespace kuasar::test
