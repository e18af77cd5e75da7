#include "systemd/node.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <sstream>

#include "support/lab.h"
#include "support/wait.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kPatience(30);
constexpr char kSandboxerProgram[] = "/usr/local/bin/runc-sandboxer";

std::string output_of(std::vector<std::string> argv) {
  const auto ran = run_program(std::move(argv));
  INFO((ran ? ran->output : ran.error().message));
  REQUIRE((ran && ran->code == 0));
  return ran->output;
}

}  // namespace

void systemctl(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "systemctl");
  output_of(std::move(arguments));
}

std::string unit_property(const std::string& unit, const std::string& property) {
  std::string value = output_of({"systemctl", "show", "--value", "-p", property, unit});
  value.erase(value.find_last_not_of('\n') + 1);
  return value;
}

pid_t main_pid(const std::string& unit) {
  return static_cast<pid_t>(std::atoi(unit_property(unit, "MainPID").c_str()));
}

pid_t await_new_main_pid(const std::string& unit, pid_t before) {
  pid_t now = 0;
  const bool up = wait_until(
      [&] {
        now = main_pid(unit);
        return now > 0 && now != before && unit_property(unit, "ActiveState") == "active";
      },
      kPatience);
  CAPTURE(unit, before, now);
  REQUIRE(up);
  return now;
}

std::vector<std::string> journal(const std::string& unit) {
  output_of({"journalctl", "--sync"});
  std::istringstream text(output_of({"journalctl", "--no-pager", "-o", "cat", "-u", unit}));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

std::size_t journal_count(const std::string& unit, const std::string& text) {
  const std::vector<std::string> lines = journal(unit);
  return static_cast<std::size_t>(
      std::count_if(lines.begin(), lines.end(),
                    [&](const std::string& line) { return line.find(text) != std::string::npos; }));
}

void install_program(const fs::path& from, const fs::path& to) {
  const fs::path beside = to.string() + ".new";
  fs::copy_file(from, beside, fs::copy_options::overwrite_existing);
  fs::rename(beside, to);
}

void install(Version version) {
  const fs::path from = version == Version::kNext ? "/lab/next" : "/lab/this";
  install_program(from / "libexec/kuasar/kuasar-keeper", kKeeperProgram);
  install_program(from / "bin/runc-sandboxer", kSandboxerProgram);
}

cri::PodSandboxConfig node_pod(bool network, cri::NamespaceMode pid) {
  static std::atomic<int> count{0};
  const std::string name = fmt::format("pod{}", ++count);
  cri::PodSandboxConfig config;
  config.mutable_metadata()->set_name(name);
  config.mutable_metadata()->set_uid("uid-" + name);
  config.mutable_metadata()->set_namespace_("default");
  if (network) config.set_hostname(name);
  config.set_log_directory("/var/log/pods/" + name);
  config.mutable_linux()->set_cgroup_parent("/kubepods/" + name);
  auto* options = config.mutable_linux()->mutable_security_context()->mutable_namespace_options();
  options->set_network(network ? cri::POD : cri::NODE);
  options->set_pid(pid);
  return config;
}

cri::ContainerConfig node_container(const cri::PodSandboxConfig& pod, const std::string& script) {
  static std::atomic<int> count{0};
  const std::string name = fmt::format("c{}", ++count);
  cri::ContainerConfig config;
  config.mutable_metadata()->set_name(name);
  config.mutable_image()->set_image(kBusyboxImage);
  for (const std::string& word : {std::string("sh"), std::string("-c"), script}) {
    config.add_command(word);
  }
  config.set_log_path(name + ".log");
  *config.mutable_linux()->mutable_security_context()->mutable_namespace_options() =
      pod.linux().security_context().namespace_options();
  return config;
}

Result<std::string> start_container(CriClient& cri, const std::string& pod,
                                    const cri::PodSandboxConfig& config,
                                    const cri::ContainerConfig& container) {
  TRY(std::string id, cri.create_container(pod, container, config));
  CHECK_OK(cri.start_container(id));
  return id;
}

Result<NodePod> start_pod(CriClient& cri, const cri::PodSandboxConfig& config,
                          const std::string& script) {
  NodePod pod;
  pod.config = config;
  TRY(pod.id, cri.run_pod(config, kHandler));
  const cri::ContainerConfig container = node_container(config, script);
  pod.log = fs::path(config.log_directory()) / container.log_path();
  TRY(pod.container, start_container(cri, pod.id, config, container));
  return pod;
}

Result<> remove_pod(CriClient& cri, const std::string& id) {
  CHECK_OK(cri.stop_pod(id));
  return cri.remove_pod(id);
}

}  // namespace kuasar::test
