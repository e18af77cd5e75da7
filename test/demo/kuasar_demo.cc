#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "demo/wasm_demo.h"
#include "os/process_usage.h"
#include "support/cri_client.h"
#include "support/lab.h"
#include "support/wait.h"

// The program behind `tools/dev demo`: one pod with two containers on a private containerd, shown
// step by step. At most 100 columns; a step's line ends with the time that it took.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// One line per step, printed when the step is over.
class Step {
 public:
  explicit Step(std::string name) : name_(std::move(name)) {}
  void done(const std::string& text) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    fmt::print("{:<12} {:<76.76} {:>8.2f}s\n", name_, text, seconds);
    std::fflush(stdout);
  }

 private:
  std::string name_;
  Clock::time_point start_ = Clock::now();
};

void show(const std::string& text) {
  fmt::print("{:<12} {:.86}\n", "", text);
}

template <typename T>
T need(Result<T> result, const std::string& what) {
  if (!result) throw std::runtime_error(what + ": " + result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

struct DemoContainer {
  std::string name;
  std::string id;
  fs::path log;
};

class Demo {
 public:
  explicit Demo(Lab& lab) : lab_(lab), cri_(lab.cri()) {}

  void run() {
    make_pod();
    start_containers();
    show_logs();
    show_processes();
    show_memory();
    survive("the daemon", [this] { kill_daemon(); });
    survive("its keeper", [this] { kill_keeper(); });
    clean_up();
  }

 private:
  void make_pod() {
    const Step step("pod");
    config_.mutable_metadata()->set_name("demo");
    config_.mutable_metadata()->set_uid("demo");
    config_.mutable_metadata()->set_namespace_("default");
    config_.set_hostname("demo");
    config_.set_log_directory((lab_.pods() / "demo").string());
    config_.mutable_linux()->set_cgroup_parent(lab_.cgroup_parent());
    options(*config_.mutable_linux());
    asked_ = std::chrono::system_clock::now();
    pod_ = need(cri_.run_pod(config_, lab_.sandboxer().handler), "RunPodSandbox");
    const auto status = need(cri_.pod_status(pod_), "PodSandboxStatus");
    ip_ = status.status().network().ip();
    step.done(fmt::format("RunPodSandbox, handler {}: \"demo\" is READY at {}",
                          lab_.sandboxer().handler, ip_));
  }

  void start_containers() {
    web_ = start("web", kToolsImage,
                 "echo \"$(cat /etc/image-name) serves $PWD on $(hostname)\";"
                 "exec httpd -f -p 8080 -h /srv");
    client_ = start("client", kBusyboxImage,
                    "until wget -q -O - http://127.0.0.1:8080/README; do sleep 0.01; done;"
                    "echo \"$(cat /etc/image-name) has read that from its neighbour\";"
                    "exec sleep 3600");
  }

  DemoContainer start(const std::string& name, const char* image, const std::string& script) {
    const Step step("container");
    cri::ContainerConfig config;
    config.mutable_metadata()->set_name(name);
    config.mutable_image()->set_image(image);
    for (const char* word : {"sh", "-c"}) config.add_command(word);
    config.add_command(script);
    config.set_log_path(name + ".log");
    options(*config.mutable_linux());
    const std::string id =
        need(cri_.create_container(pod_, config, config_), "CreateContainer " + name);
    need(cri_.start_container(id), "StartContainer " + name);
    step.done(fmt::format("created and started \"{}\" from {}", name, image));
    return {name, id, fs::path(config_.log_directory()) / config.log_path()};
  }

  void show_logs() {
    const Step step("logs");
    for (const DemoContainer* container : {&web_, &client_}) {
      const std::size_t wanted = container == &web_ ? 1 : 2;
      const auto complete = [&] {
        const std::string text = read_text(container->log);
        return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) >= wanted;
      };
      if (!wait_until(complete, std::chrono::seconds(20))) {
        throw std::runtime_error("\"" + container->name + "\" has written nothing");
      }
    }
    step.done(fmt::format("first output {:.0f} ms after RunPodSandbox was asked for",
                          milliseconds_to(web_)));
    for (const DemoContainer* container : {&web_, &client_}) {
      std::string text = need(parse_cri_log(read_text(container->log)), "log").out;
      for (std::size_t end = 0; (end = text.find('\n')) != std::string::npos;
           text.erase(0, end + 1)) {
        show(fmt::format("{:<6} | {}", container->name, text.substr(0, end)));
      }
    }
  }

  // From the request to the time that containerd put before the first entry of the log.
  double milliseconds_to(const DemoContainer& container) const {
    const auto written = need(first_log_time(read_text(container.log)), "log");
    return std::chrono::duration<double, std::milli>(written - asked_).count();
  }

  void show_processes() const {
    const Step step("processes");
    std::multimap<pid_t, pid_t> children;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      const std::string stat = read_text(entry.path() / "stat");
      const std::size_t paren = stat.rfind(')');
      if (paren == std::string::npos || stat.size() < paren + 5) continue;
      children.emplace(std::atoi(stat.c_str() + paren + 4), std::stoi(name));
    }
    step.done("all that runs: three daemons and the containers; no pause, no shim");
    show_tree(children, lab_.containerd_pid(), "", "one per node, stock");
    show_tree(children, lab_.sandboxer_pid(), "", "one per node, for all pods");
    show_tree(children, lab_.keeper_pid(), "", "keeps what it would lose");
  }

  void show_tree(const std::multimap<pid_t, pid_t>& children, pid_t pid, const std::string& indent,
                 const std::string& remark) const {
    const fs::path proc = "/proc/" + std::to_string(pid);
    std::string words = read_text(proc / "cmdline");
    for (char& c : words) c = c == '\0' ? ' ' : c;
    if (indent.empty()) words = fs::path(words.substr(0, words.find(' '))).filename();
    std::string whose = remark;
    const std::string cgroup = read_text(proc / "cgroup");
    for (const DemoContainer* container : {&web_, &client_}) {
      if (cgroup.find(container->id) != std::string::npos) {
        whose = "container \"" + container->name + "\"";
      }
    }
    show(fmt::format("{}{:<{}.{}} {:>8}  {}", indent, words, 44 - indent.size(), 44 - indent.size(),
                     pid, whose));
    const auto [first, last] = children.equal_range(pid);
    for (auto child = first; child != last; ++child) {
      show_tree(children, child->second, indent + "  ", "");
    }
  }

  void show_memory() const {
    const Step step("memory");
    const auto daemon = need(os::memory_of(lab_.sandboxer_pid()), "memory of the daemon");
    const auto keeper = need(os::memory_of(lab_.keeper_pid()), "memory of the keeper");
    step.done(fmt::format(
        "daemon {:.1f} MiB proportional (PSS), {:.1f} MiB private; keeper {:.1f} MiB (PSS)",
        mebibytes(daemon.pss), mebibytes(daemon.private_dirty), mebibytes(keeper.pss)));
  }

  static double mebibytes(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

  // The pod must not notice: READY, the same processes, and the web server still answers.
  void survive(const std::string& victim, const std::function<void()>& kill) {
    const Step step("kill -9");
    const std::string before = workload_pids();
    kill();
    const auto status = need(cri_.pod_status(pod_), "PodSandboxStatus");
    const bool ready = status.status().state() == cri::SANDBOX_READY;
    const bool running =
        need(cri_.container_status(web_.id), "ContainerStatus").state() == cri::CONTAINER_RUNNING;
    const auto page = need(
        cri_.exec_sync(client_.id, {"wget", "-q", "-O", "-", "http://127.0.0.1:8080/README"}, 10),
        "ExecSync");
    if (!ready || !running || page.exit_code() != 0 || workload_pids() != before) {
      throw std::runtime_error("the pod has not survived kill -9 of " + victim);
    }
    step.done(
        fmt::format("of {}: READY, RUNNING, pids {} as before, \"web\" serves", victim, before));
  }

  void kill_daemon() {
    lab_.kill_sandboxer();
    lab_.start_sandboxer();
  }

  void kill_keeper() {
    const pid_t old = lab_.keeper_pid();
    lab_.kill_keeper();
    const auto replaced = [&] { return lab_.keeper_pid() != 0 && lab_.keeper_pid() != old; };
    if (!wait_until(replaced, std::chrono::seconds(10))) {
      throw std::runtime_error("nobody started another keeper");
    }
  }

  // Of the containers' processes, in order.
  std::string workload_pids() const {
    std::set<pid_t> pids;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string cgroup = read_text(entry.path() / "cgroup");
      for (const DemoContainer* container : {&web_, &client_}) {
        if (cgroup.find(container->id) != std::string::npos) {
          pids.insert(std::stoi(entry.path().filename()));
        }
      }
    }
    return fmt::format("{}", fmt::join(pids, ", "));
  }

  void clean_up() {
    Step step("stop");
    need(cri_.stop_pod(pod_), "StopPodSandbox");
    step.done("StopPodSandbox: containers ended, network gone");
    step = Step("remove");
    need(cri_.remove_pod(pod_), "RemovePodSandbox");
    step.done("RemovePodSandbox: nothing is left of the pod");
  }

  template <typename LinuxConfig>
  static void options(LinuxConfig& config) {
    config.mutable_security_context()->mutable_namespace_options()->set_pid(cri::CONTAINER);
  }

  Lab& lab_;
  CriClient& cri_;
  cri::PodSandboxConfig config_;
  std::string pod_;
  std::string ip_;
  std::chrono::system_clock::time_point asked_;
  DemoContainer web_;
  DemoContainer client_;
};

void demo() {
  const Step whole("demo");
  {
    Step step("start");
    std::string no_wasm;
    const std::optional<Neighbour> wasm = wasm_neighbour(no_wasm);
    Lab lab(sandboxers_under_test().front(), "", wasm);
    const auto version = need(lab.cri().version(std::chrono::seconds(10)), "Version");
    step.done(fmt::format("{}, keeper, containerd {}: private, with two images",
                          lab.sandboxer().name, version.runtime_version()));
    Demo(lab).run();
    step = Step("wasm");
    const std::vector<std::string> said =
        wasm ? run_wasm_pod(lab, *wasm) : std::vector<std::string>{"skipped: " + no_wasm};
    step.done(said.front());
    for (std::size_t i = 1; i < said.size(); ++i) show(said[i]);
    step = Step("shutdown");
    const int code = lab.stop_sandboxer();
    lab.stop_containerd();
    step.done(fmt::format("SIGTERM to both daemons; {} ended with {}", lab.sandboxer().name, code));
  }
  whole.done("everything is removed again");
  fmt::print(
      "\nwhat next:   tools/dev test --quick     the tests, in a few minutes\n"
      "             tools/dev traps            what containerd's contract hides, and who covers "
      "it\n"
      "             docs/ARCHITECTURE.md       the way of a pod, in one picture\n"
      "             README.md                  give your own containerd the handler kuasar-runc\n");
}

}  // namespace
}  // namespace kuasar::test

int main() {
  try {
    kuasar::test::demo();
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
  return 0;
}
