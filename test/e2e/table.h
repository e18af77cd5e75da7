#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "support/cri_client.h"
#include "support/lab.h"
#include "support/wasm_engine.h"

// The one table of e2e cases. A case is a function on a Case; run_case calls it for every sandboxer
// under test, on a lab that all cases of that sandboxer share, and compares the census of before
// with the census of after.

namespace kuasar::test {

struct Pod {
  std::string id;
  cri::PodSandboxConfig config;
};

struct Container {
  std::string id;
  std::filesystem::path log;
};

/// What a container that ended left.
struct Finished {
  cri::ContainerStatus status;
  CriLog log;
};

/// What a case may do. Everything that it makes is removed at its end. All functions that are not
/// called try_ fail the test (REQUIRE) with the server's words.
class Case {
 public:
  explicit Case(Lab& lab);
  ~Case();
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  Lab& lab() { return lab_; }
  CriClient& cri() { return lab_.cri(); }
  bool ours() const { return lab_.sandboxer().ours(); }
  /// Ends the case as skipped unless the sandboxer is ours: for properties that only we promise.
  void only_ours(const std::string& property) const;
  /// An existing directory of the case.
  const std::filesystem::path& scratch() const { return scratch_; }

  /// A pod with a network of its own; containers have their own PID namespace, as kubelets ask.
  cri::PodSandboxConfig pod_config();
  cri::PodSandboxConfig host_network_config();
  cri::ContainerConfig container_config(const std::vector<std::string>& command,
                                        const std::string& image = kBusyboxImage);

  Result<Pod> try_run_pod(const cri::PodSandboxConfig& config);
  Pod run_pod(const cri::PodSandboxConfig& config);
  Pod run_pod() { return run_pod(pod_config()); }
  void stop(const Pod& pod);
  void remove(const Pod& pod);

  /// CreateContainer; the log file's path is filled in.
  Result<Container> try_create(const Pod& pod, cri::ContainerConfig config);
  Container create(const Pod& pod, const cri::ContainerConfig& config);
  /// Create and start.
  Container start(const Pod& pod, const cri::ContainerConfig& config);
  Container shell(const Pod& pod, const std::string& script,
                  const std::string& image = kBusyboxImage);
  /// A container that does nothing until it is killed, and says "up" when it does.
  Container sleeper(const Pod& pod);

  cri::ContainerStatus status(const Container& container);
  cri::PodSandboxState state(const Pod& pod);
  /// Waits for the end of a container, and reads its log.
  Finished finish(const Container& container,
                  std::chrono::seconds deadline = std::chrono::seconds(30));
  Finished run(const Pod& pod, const cri::ContainerConfig& config) {
    return finish(start(pod, config));
  }
  /// The trimmed standard output of a script that must end with 0.
  std::string output_of(const Pod& pod, const std::string& script,
                        const std::string& image = kBusyboxImage);
  CriLog log(const Container& container);
  /// Waits until the container's output contains `text`.
  void await_output(const Container& container, const std::string& text);

  /// Removes every pod that is still there, the polite way.
  void clean_up();

 private:
  Lab& lab_;
  std::filesystem::path scratch_;
};

void run_case(const std::function<void(Case&)>& body);

/// The same for ours alone, on a lab of the case's own whose sandboxer has this configuration. A
/// first round of the body warms the lab up, the second is counted.
void run_case_with(const std::string& config, const std::function<void(Case&)>& body);

/// The same on a lab of the case's own with short logs, for a body that takes long: it runs once.
void run_long_case(const std::function<void(Case&)>& body);

/// The same for the wasm kind, on a lab that its cases share, or, with a configuration, on one of
/// the case's own. Skipped where there is no engine.
void run_wasm_case(const std::function<void(Case&)>& body);
void run_wasm_case_with(const std::string& config, const std::function<void(Case&)>& body);
/// A section for every engine of the wasm kind that there is; the others are skipped in words.
void for_each_engine(const std::function<void(const wasm::EngineConfig&)>& body);
/// The same as run_wasm_case() for every engine, one section each.
void run_engine_case(const std::function<void(Case&)>& body);
/// A container that runs a module of the test image: {"/tool.wasm", "print", "hello"}.
cri::ContainerConfig wasm_config(Case& e, const std::vector<std::string>& command);

/// "name=value" lines to a map.
std::map<std::string, std::string> parse_pairs(const std::string& text);
std::string trimmed(const std::string& text);
std::vector<std::string> lines_of(const std::string& text);

/// Like "net:[4026531840]".
std::string host_namespace(const std::string& kind);

/// Pids of the processes of the machine whose command line contains `text`.
std::set<pid_t> processes_with(const std::string& text);

cri::NamespaceOption* namespace_options(cri::PodSandboxConfig& config);
cri::NamespaceOption* namespace_options(cri::ContainerConfig& config);

/// A user namespace of the pod's own: ids from 0 on are the host's from kFirstHostId on.
inline constexpr std::uint32_t kFirstHostId = 1000000;
inline constexpr std::uint32_t kMappedIds = 65536;
void set_mapping(cri::IDMapping* mapping);
void map_ids(cri::NamespaceOption* options);
/// What containerd says of the OCI runtime behind the lab's handler, which its shim has asked.
cri::RuntimeHandlerFeatures runtime_features(Case& e);

}  // namespace kuasar::test
