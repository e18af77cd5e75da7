#include "demo/wasm_demo.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

#include "support/wait.h"
#include "support/wasm_engine.h"

namespace kuasar::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kInstances = 10;

template <typename T>
T need(Result<T> result, const std::string& what) {
  if (!result) throw std::runtime_error(what + ": " + result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

double mebibytes_of(pid_t pid) {
  std::istringstream lines(read_text(fmt::format("/proc/{}/smaps_rollup", pid)));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("Pss:")) return std::atof(line.c_str() + 4) / 1024;
  }
  return 0;
}

std::vector<pid_t> processes_of(Lab& lab, const std::string& container) {
  std::istringstream pids(
      read_text("/sys/fs/cgroup/pids" + lab.cgroup_parent() + "/" + container + "/cgroup.procs"));
  std::vector<pid_t> all;
  for (pid_t pid = 0; pids >> pid;) all.push_back(pid);
  return all;
}

}  // namespace

std::optional<Neighbour> wasm_neighbour(std::string& reason) {
  const std::optional<wasm::EngineConfig> engine = find_wasmedge(reason);
  if (!engine) return std::nullopt;
  return Neighbour{wasm_sandboxer(), engine_toml(*engine)};
}

std::vector<std::string> run_wasm_pod(Lab& lab, const Neighbour& neighbour) {
  CriClient& cri = lab.cri();
  cri::PodSandboxConfig config;
  config.mutable_metadata()->set_name("wasm");
  config.mutable_metadata()->set_uid("wasm");
  config.mutable_metadata()->set_namespace_("default");
  config.set_hostname("wasm");
  config.set_log_directory((lab.pods() / "wasm").string());
  config.mutable_linux()->set_cgroup_parent(lab.cgroup_parent());
  const auto own_pids = [](auto& part) {
    part.mutable_linux()->mutable_security_context()->mutable_namespace_options()->set_pid(
        cri::CONTAINER);
  };
  own_pids(config);
  const std::string pod = need(cri.run_pod(config, neighbour.sandboxer.handler), "RunPodSandbox");

  // The first one also starts the zygote.
  std::vector<double> starts;
  std::vector<std::string> containers;
  for (int i = 0; i <= kInstances; ++i) {
    cri::ContainerConfig container;
    container.mutable_metadata()->set_name(fmt::format("module{}", i));
    container.mutable_image()->set_image(kWasmImage);
    for (const char* word : {"/tool.wasm", "print", "hello from a module", "sleep", "3600"}) {
      container.add_command(word);
    }
    container.set_log_path(fmt::format("module{}.log", i));
    own_pids(container);
    containers.push_back(need(cri.create_container(pod, container, config), "CreateContainer"));
    const auto begin = Clock::now();
    need(cri.start_container(containers.back()), "StartContainer");
    starts.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }
  const auto said = [&] {
    return read_text(lab.pods() / "wasm" / fmt::format("module{}.log", kInstances))
               .find("hello from a module") != std::string::npos;
  };
  if (!wait_until(said, std::chrono::seconds(20))) throw std::runtime_error("a module is silent");
  double memory = 0;
  std::size_t processes = 0;
  for (const std::string& container : containers) {
    for (const pid_t pid : processes_of(lab, container)) {
      memory += mebibytes_of(pid);
      ++processes;
    }
  }
  std::sort(starts.begin() + 1, starts.end());
  std::vector<std::string> lines;
  lines.push_back(fmt::format("handler {}: {} containers of a WebAssembly module say hello",
                              neighbour.sandboxer.handler, containers.size()));
  lines.push_back(
      fmt::format("StartContainer: {:.1f} ms, the first, which loads the engine, {:.0f}",
                  starts[1 + kInstances / 2], starts[0]));
  if (processes > 0) {
    lines.push_back(fmt::format("{:.1f} MiB proportional (PSS) each, one process and no runtime",
                                memory / static_cast<double>(processes)));
  }
  need(cri.stop_pod(pod), "StopPodSandbox");
  need(cri.remove_pod(pod), "RemovePodSandbox");
  return lines;
}

}  // namespace kuasar::test
