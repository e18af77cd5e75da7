#include "e2e/table.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_case_info.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <exception>
#include <memory>
#include <sstream>
#include <utility>

#include "support/census.h"
#include "support/wait.h"
#include "support/wasm_engine.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

// Forgotten pods are found while a test waits for it.
constexpr char kConfig[] = "orphan_grace_secs = 2\n";

// The labs that the cases share, by handler; made when the first case needs one.
std::map<std::string, std::unique_ptr<Lab>>& labs() {
  static std::map<std::string, std::unique_ptr<Lab>> all;
  return all;
}

// One pod's life before the first census: connections, threads and directories that stay for good
// appear now.
void warm_up(Lab& lab) {
  Case first(lab);
  const Pod pod = first.run_pod();
  if (lab.sandboxer().wasm()) {
    REQUIRE(first.run(pod, wasm_config(first, {"/hello.wasm"})).log.out == "hello from wasm\n");
  } else {
    REQUIRE(first.output_of(pod, "echo warm") == "warm");
  }
  first.clean_up();
}

Lab& lab_for(const SandboxerUnderTest& sandboxer, const std::string& config = kConfig) {
  std::unique_ptr<Lab>& lab = labs()[sandboxer.handler + "\n" + config];
  if (lab && !lab->healthy()) lab.reset();
  if (!lab) {
    lab = std::make_unique<Lab>(sandboxer, config);
    warm_up(*lab);
  }
  return *lab;
}

// A census that does not change any more: what the case before left to containerd's own clean-up
// (a short-lived helper's pidfd, a snapshot's removal) is over.
Census settled_census(const Lab& lab) {
  Census census = Census::take(lab.census_scope());
  wait_until(
      [&] {
        Census next = Census::take(lab.census_scope());
        const bool equal = Census::diff(census, next).empty();
        census = std::move(next);
        return equal;
      },
      std::chrono::seconds(3));
  return census;
}

// A pidfd of containerd is no sign of a leak: Go's garbage collector closes those of the helpers
// that it starts for a user namespace, some time later. Nor is what crun makes once in its root for
// all of its containers: an empty directory, and filters that it has compiled.
std::vector<std::string> difference(const Census& before, const Lab& lab) {
  std::vector<std::string> lines = Census::diff(before, Census::take(lab.census_scope()));
  // A zygote is no part of any pod, and a new one comes with every daemon.
  std::erase_if(lines, [](const std::string& line) {
    // A zombie of an earlier case that the keeper has reaped meanwhile.
    const bool reaped = line.starts_with("gone: zombie ") && line.ends_with(" parent keeper");
    return reaped || line.ends_with(" of containerd -> anon_inode:[pidfd]") ||
           line.find("/oci/.cache") != line.npos || line.find("/oci/.empty-dir") != line.npos ||
           line.find("(kuasar-wasm-worker wasm") != std::string::npos ||
           line.find("(kuasar-wasm)") != std::string::npos ||
           line.find("(kuasar-wasm-mod)") != std::string::npos;
  });
  return lines;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  return text;
}

// Runs the body once and counts what it leaves.
void run_counted(Lab& lab, const std::function<void(Case&)>& body) {
  const pid_t daemon = lab.sandboxer_pid();
  const pid_t containerd = lab.containerd_pid();
  const Census before = settled_census(lab);
  {
    Case the_case(lab);
    body(the_case);
    the_case.clean_up();
  }
  // A new process has its lasting connections and threads only after a first pod.
  if (lab.sandboxer_pid() != daemon || lab.containerd_pid() != containerd) warm_up(lab);
  std::vector<std::string> left;
  wait_until([&] { return (left = difference(before, lab)).empty(); }, std::chrono::seconds(10));
  INFO("census:" << joined(left));
  CHECK(left.empty());
}

// Shows the logs of the labs after a case that failed, and ends the labs after the last case.
class LabListener : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;

  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    if (stats.totals.assertions.failed == 0) return;
    for (const auto& [handler, lab] : labs()) {
      if (lab)
        fmt::print(stderr, "logs after \"{}\":\n{}", stats.testInfo->name, lab->log_tails(25));
    }
  }
  void testRunEnded(const Catch::TestRunStats&) override { labs().clear(); }
};
CATCH_REGISTER_LISTENER(LabListener)

}  // namespace

void run_case(const std::function<void(Case&)>& body) {
  const std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  for (const SandboxerUnderTest& sandboxer : sandboxers_under_test()) {
    DYNAMIC_SECTION(sandboxer.name) {
      run_counted(lab_for(sandboxer), body);
    }
  }
}

void run_case_with(const std::string& config, const std::function<void(Case&)>& body) {
  const std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  for (const SandboxerUnderTest& sandboxer : sandboxers_under_test()) {
    if (!sandboxer.ours()) SKIP(sandboxer.name << " has no such setting");
    DYNAMIC_SECTION(sandboxer.name) {
      Lab lab(sandboxer, config);
      {
        Case first(lab);
        body(first);
        first.clean_up();
      }
      run_counted(lab, body);
    }
  }
}

void run_long_case(const std::function<void(Case&)>& body) {
  const std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  for (const SandboxerUnderTest& sandboxer : sandboxers_under_test()) {
    DYNAMIC_SECTION(sandboxer.name) {
      Lab lab(sandboxer, kConfig, std::nullopt, "info");
      warm_up(lab);
      run_counted(lab, body);
    }
  }
}

namespace {

// Skips where the wasm kind cannot run.
std::string wasm_toml() {
  std::string reason = Lab::unavailable();
  const std::optional<wasm::EngineConfig> engine = find_wasmedge(reason);
  if (!Lab::unavailable().empty() || !engine) SKIP(reason);
  return kConfig + engine_toml(*engine);
}

}  // namespace

void run_wasm_case(const std::function<void(Case&)>& body) {
  run_counted(lab_for(wasm_sandboxer(), wasm_toml()), body);
}

void for_each_engine(const std::function<void(const wasm::EngineConfig&)>& body) {
  if (!Lab::unavailable().empty()) SKIP(Lab::unavailable());
  for (const auto find : {&find_wasmedge, &find_wasmtime}) {
    DYNAMIC_SECTION((find == &find_wasmedge ? "WasmEdge" : "Wasmtime")) {
      std::string reason;
      const std::optional<wasm::EngineConfig> engine = find(reason);
      if (!engine) SKIP(reason);
      body(*engine);
    }
  }
}

void run_engine_case(const std::function<void(Case&)>& body) {
  for_each_engine([&](const wasm::EngineConfig& engine) {
    run_counted(lab_for(wasm_sandboxer(), kConfig + engine_toml(engine)), body);
  });
}

void run_wasm_case_with(const std::string& config, const std::function<void(Case&)>& body) {
  const std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  Lab lab(wasm_sandboxer(), config.empty() ? wasm_toml() : config);
  {
    Case first(lab);
    body(first);
    first.clean_up();
  }
  run_counted(lab, body);
}

cri::ContainerConfig wasm_config(Case& e, const std::vector<std::string>& command) {
  return e.container_config(command, kWasmImage);
}

Case::Case(Lab& lab) : lab_(lab) {
  static std::atomic<int> count{0};
  scratch_ = lab.pods() / fmt::format("case{}", ++count);
  fs::create_directory(scratch_);
}

// After a failed assertion nothing may throw here; what is left behind shows in the next census.
Case::~Case() {
  try {
    if (lab_.healthy()) clean_up();
  } catch (const std::exception& error) {
    fmt::print(stderr, "after a failed case: {}\n", error.what());
  }
  std::error_code ec;
  fs::remove_all(scratch_, ec);
}

void Case::clean_up() {
  const auto pods = cri().list_pods();
  if (!pods) return;
  for (const cri::PodSandbox& pod : *pods) {
    const auto stopped = cri().stop_pod(pod.id());
    const auto removed = cri().remove_pod(pod.id());
    if (!stopped) FAIL_CHECK("StopPodSandbox: " << stopped.error().message);
    if (!removed) FAIL_CHECK("RemovePodSandbox: " << removed.error().message);
  }
}

void Case::only_ours(const std::string& property) const {
  if (!ours()) SKIP(lab_.sandboxer().name << " does not promise: " << property);
}

cri::PodSandboxConfig Case::pod_config() {
  static std::atomic<int> count{0};
  const std::string name = fmt::format("pod{}", ++count);
  cri::PodSandboxConfig config;
  config.mutable_metadata()->set_name(name);
  config.mutable_metadata()->set_uid("uid-" + name);
  config.mutable_metadata()->set_namespace_("default");
  config.set_hostname(name);
  config.set_log_directory((scratch_ / name).string());
  config.mutable_linux()->set_cgroup_parent(lab_.cgroup_parent());
  namespace_options(config)->set_pid(cri::CONTAINER);
  return config;
}

cri::PodSandboxConfig Case::host_network_config() {
  cri::PodSandboxConfig config = pod_config();
  config.clear_hostname();
  namespace_options(config)->set_network(cri::NODE);
  return config;
}

cri::ContainerConfig Case::container_config(const std::vector<std::string>& command,
                                            const std::string& image) {
  static std::atomic<int> count{0};
  const std::string name = fmt::format("c{}", ++count);
  cri::ContainerConfig config;
  config.mutable_metadata()->set_name(name);
  config.mutable_image()->set_image(image);
  for (const std::string& word : command) config.add_command(word);
  config.set_log_path(name + ".log");
  namespace_options(config)->set_pid(cri::CONTAINER);
  return config;
}

Result<Pod> Case::try_run_pod(const cri::PodSandboxConfig& config) {
  TRY(std::string id, cri().run_pod(config, lab_.sandboxer().handler));
  return Pod{std::move(id), config};
}

Pod Case::run_pod(const cri::PodSandboxConfig& config) {
  const auto pod = try_run_pod(config);
  INFO("RunPodSandbox: " << (pod ? "" : pod.error().message));
  REQUIRE(pod.has_value());
  return *pod;
}

void Case::stop(const Pod& pod) {
  const auto stopped = cri().stop_pod(pod.id);
  INFO("StopPodSandbox: " << (stopped ? "" : stopped.error().message));
  REQUIRE(stopped.has_value());
}

void Case::remove(const Pod& pod) {
  const auto removed = cri().remove_pod(pod.id);
  INFO("RemovePodSandbox: " << (removed ? "" : removed.error().message));
  REQUIRE(removed.has_value());
}

Result<Container> Case::try_create(const Pod& pod, cri::ContainerConfig config) {
  // A container says nothing about the network: it has its pod's.
  namespace_options(config)->set_network(
      pod.config.linux().security_context().namespace_options().network());
  TRY(std::string id, cri().create_container(pod.id, config, pod.config));
  return Container{std::move(id), fs::path(pod.config.log_directory()) / config.log_path()};
}

Container Case::create(const Pod& pod, const cri::ContainerConfig& config) {
  const auto container = try_create(pod, config);
  INFO("CreateContainer: " << (container ? "" : container.error().message));
  REQUIRE(container.has_value());
  return *container;
}

Container Case::start(const Pod& pod, const cri::ContainerConfig& config) {
  const Container container = create(pod, config);
  const auto started = cri().start_container(container.id);
  INFO("StartContainer: " << (started ? "" : started.error().message));
  REQUIRE(started.has_value());
  return container;
}

Container Case::shell(const Pod& pod, const std::string& script, const std::string& image) {
  return start(pod, container_config({"sh", "-c", script}, image));
}

Container Case::sleeper(const Pod& pod) {
  const Container container = shell(pod, "echo up; exec sleep 3600");
  await_output(container, "up\n");
  return container;
}

cri::ContainerStatus Case::status(const Container& container) {
  const auto status = cri().container_status(container.id);
  INFO("ContainerStatus: " << (status ? "" : status.error().message));
  REQUIRE(status.has_value());
  return *status;
}

cri::PodSandboxState Case::state(const Pod& pod) {
  const auto status = cri().pod_status(pod.id);
  INFO("PodSandboxStatus: " << (status ? "" : status.error().message));
  REQUIRE(status.has_value());
  return status->status().state();
}

Finished Case::finish(const Container& container, std::chrono::seconds deadline) {
  cri::ContainerStatus last;
  const bool ended = wait_until(
      [&] {
        const auto status = cri().container_status(container.id);
        if (status) last = *status;
        return last.state() == cri::CONTAINER_EXITED;
      },
      deadline);
  INFO("container " << container.id << ":\n" << last.Utf8DebugString());
  REQUIRE(ended);
  return {last, log(container)};
}

std::string Case::output_of(const Pod& pod, const std::string& script, const std::string& image) {
  const Finished end = finish(shell(pod, script, image));
  INFO("`" << script << "` said: " << end.log.out << end.log.err);
  REQUIRE(end.status.exit_code() == 0);
  return trimmed(end.log.out);
}

CriLog Case::log(const Container& container) {
  // containerd may be in the middle of an entry.
  Result<CriLog> parsed;
  wait_until(
      [&] {
        parsed = parse_cri_log(read_text(container.log));
        return parsed.has_value();
      },
      std::chrono::seconds(5));
  INFO("log: " << (parsed ? "" : parsed.error().message));
  REQUIRE(parsed.has_value());
  return *parsed;
}

void Case::await_output(const Container& container, const std::string& text) {
  const bool found = wait_until(
      [&] {
        const auto parsed = parse_cri_log(read_text(container.log));
        return parsed && parsed->out.find(text) != std::string::npos;
      },
      std::chrono::seconds(20));
  INFO("waited for \"" << text << "\", the log has:\n" << read_text(container.log));
  REQUIRE(found);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

std::map<std::string, std::string> parse_pairs(const std::string& text) {
  std::map<std::string, std::string> result;
  for (const std::string& line : lines_of(text)) {
    const std::size_t split = line.find('=');
    if (split != std::string::npos) result[line.substr(0, split)] = line.substr(split + 1);
  }
  return result;
}

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \n") - first + 1);
}

std::string host_namespace(const std::string& kind) {
  return fs::read_symlink("/proc/self/ns/" + kind).string();
}

std::set<pid_t> processes_with(const std::string& text) {
  std::set<pid_t> result;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator("/proc", ec)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::string words = read_text(entry.path() / "cmdline");
    std::replace(words.begin(), words.end(), '\0', ' ');
    if (words.find(text) != std::string::npos) result.insert(std::stoi(name));
  }
  return result;
}

cri::NamespaceOption* namespace_options(cri::PodSandboxConfig& config) {
  return config.mutable_linux()->mutable_security_context()->mutable_namespace_options();
}

cri::NamespaceOption* namespace_options(cri::ContainerConfig& config) {
  return config.mutable_linux()->mutable_security_context()->mutable_namespace_options();
}

void set_mapping(cri::IDMapping* mapping) {
  mapping->set_host_id(kFirstHostId);
  mapping->set_container_id(0);
  mapping->set_length(kMappedIds);
}

void map_ids(cri::NamespaceOption* options) {
  cri::UserNamespace* mapped = options->mutable_userns_options();
  mapped->set_mode(cri::POD);
  set_mapping(mapped->add_uids());
  set_mapping(mapped->add_gids());
}

cri::RuntimeHandlerFeatures runtime_features(Case& e) {
  const auto status = e.cri().status();
  REQUIRE(status.has_value());
  for (const auto& handler : status->runtime_handlers()) {
    if (handler.name() == e.lab().sandboxer().handler) return handler.features();
  }
  return {};
}

}  // namespace kuasar::test
