#include "support/lab.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <sstream>
#include <stdexcept>

#include "os/cgroup.h"
#include "support/lab_parts.h"
#include "support/wait.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kStartPatience(60);
constexpr std::chrono::seconds kStopPatience(30);
// Somewhat less and more than containerd's own (T27).
constexpr std::chrono::milliseconds kConnectDeadline(800);
constexpr std::chrono::seconds kBackoff(5);

fs::path environment_path(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? fs::path() : fs::path(value);
}

fs::path containerd_binary() {
  const fs::path named = environment_path("KUASAR_CONTAINERD");
  return named.empty() ? environment_path("KUASAR_LAB_PREFIX") / "usr/bin/containerd" : named;
}

// The directory of the executables under test: as the environment says, else the build tree's, seen
// from <build>/test/kuasar_e2e or <build>/test/demo/kuasar_demo.
fs::path executable_dir() {
  const fs::path named = environment_path("KUASAR_LAB_BIN");
  if (!named.empty()) return named;
  fs::path dir = fs::read_symlink("/proc/self/exe").parent_path();
  while (dir.has_relative_path() && !fs::exists(dir / "bin")) dir = dir.parent_path();
  return dir / "bin";
}

// containerd logs whole specs in one line.
std::string shortened(const std::string& text) {
  constexpr std::size_t kWidth = 400;
  std::istringstream lines(text);
  std::string result;
  for (std::string line; std::getline(lines, line);) {
    result += line.size() > kWidth ? line.substr(0, kWidth) + " ...\n" : line + "\n";
  }
  return result;
}

// A new directory for a lab. Sockets below it must stay within 107 bytes.
fs::path make_root() {
  fs::path base = environment_path("KUASAR_LAB_DIR");
  if (base.empty()) base = "/tmp";
  fs::create_directories(base);
  std::string name = (base / "lab.XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
  // A container's user must be able to walk through to its volumes.
  ::chmod(name.c_str(), 0711);
  if (name.size() > 70) throw std::runtime_error("KUASAR_LAB_DIR is too long for sockets: " + name);
  return name;
}

}  // namespace

std::string Lab::unavailable() {
  if (::geteuid() != 0) return "a lab needs root";
  if (environment_path("KUASAR_LAB_PREFIX").empty()) return "KUASAR_LAB_PREFIX is not set";
  if (environment_path("KUASAR_LAB_IMAGES").empty()) return "KUASAR_LAB_IMAGES is not set";
  if (!fs::exists(containerd_binary())) return "there is no " + containerd_binary().string();
  return "";
}

Lab::Lab(SandboxerUnderTest sandboxer, const std::string& config,
         std::optional<Neighbour> neighbour, std::string log_level)
    : sandboxer_(std::move(sandboxer)),
      log_level_(std::move(log_level)),
      neighbour_(std::move(neighbour)),
      prefix_(environment_path("KUASAR_LAB_PREFIX")) {
  const std::string reason = unavailable();
  if (!reason.empty()) throw std::runtime_error(reason);
  remove_stale_labs();
  root_ = make_root();
  const std::size_t hash = std::hash<std::string>()(root_.string());
  name_ = fmt::format("kuasar-{:06x}", hash & 0xffffff);
  subnet_ = fmt::format("10.{}.{}", 64 + (hash >> 24) % 128, (hash >> 32) % 256);
  try {
    make_tree(config);
    make_network();
    make_cgroups();
    start_sandboxer();
    start_neighbour();
    start_containerd();
    import_images();
  } catch (...) {
    tear_down();
    throw;
  }
}

Lab::~Lab() {
  tear_down();
}

void Lab::make_tree(const std::string& config) {
  for (const char* dir : {"etc/cni", "run", "log", "pods", "cni-data", "failpoints"}) {
    fs::create_directories(root_ / dir);
  }
  LabPlan plan{root_,           prefix_ / "usr/lib/cni",
               name_,           subnet_,
               sandboxer_,      listen(),
               fs::path(),      log_level_,
               named_handler(), named_runtime(),
               std::nullopt,    root_ / "run/neighbour.sock"};
  if (!sandboxer_.wasm()) plan.runtime = environment_path("KUASAR_LAB_RUNTIME");
  if (neighbour_) {
    plan.neighbour = neighbour_->sandboxer;
    write_text(root_ / "etc/neighbour.toml", neighbour_->config);
  }
  write_text(root_ / "etc/containerd.toml", containerd_config(plan));
  write_text(root_ / "etc/cni/10-lab.conflist", cni_config(plan));
  write_text(root_ / "etc/sandboxer.toml", config);
}

// The bridge is made here, before CNI's plugin would do it, to carry the lab's alias.
void Lab::make_network() {
  const auto made = run_checked({"ip", "link", "add", name_, "type", "bridge"});
  if (!made) give_up(made.error().message);
  const auto named = run_checked({"ip", "link", "set", name_, "alias", lab_link_alias(root_)});
  if (!named) give_up(named.error().message);
}

void Lab::make_cgroups() const {
  for (const fs::path& hierarchy : lab_cgroup_hierarchies()) {
    std::error_code ec;
    fs::create_directory(hierarchy / name_, ec);
    if (ec) give_up("cannot make the cgroup " + (hierarchy / name_).string());
  }
}

std::vector<std::string> Lab::environment() const {
  const char* path = std::getenv("PATH");
  const std::string usr = (prefix_ / "usr").string();
  // A handler without a BinaryName has the features of the runc in containerd's PATH.
  const fs::path runtime = environment_path("KUASAR_LAB_RUNTIME");
  const std::string first =
      sandboxer_.wasm() && !runtime.empty() ? runtime.parent_path().string() + ":" : "";
  return {
      fmt::format("PATH={}{}/bin:{}/sbin:{}", first, usr, usr, path == nullptr ? "/usr/bin" : path),
      fmt::format("KUASAR_FAILPOINT_DIR={}", (root_ / "failpoints").string())};
}

// As our systemd units set it.
std::vector<std::string> Lab::sandboxer_environment() const {
  std::vector<std::string> variables = environment();
  variables.emplace_back("GLIBC_TUNABLES=glibc.malloc.tcache_count=0");
  return variables;
}

void Lab::start_sandboxer() {
  if (!sandboxer_.ours()) return;
  const std::size_t before = count_lines(sandboxer_log(), " ready");
  spawn_sandboxer();
  // Its sockets say nothing: they are open while there is a keeper.
  const bool up = wait_until(
      [&] {
        return !sandboxer_process_.alive() || count_lines(sandboxer_log(), " ready") > before;
      },
      kStartPatience);
  if (!up || !sandboxer_process_.alive()) give_up(sandboxer_.name + " does not come up");
  const bool long_away =
      away_since_ && std::chrono::steady_clock::now() - *away_since_ > kConnectDeadline;
  if (long_away) await_containerd();
}

void Lab::spawn_sandboxer() {
  auto child = Child::spawn({{(executable_dir() / sandboxer_.program).string(), "--listen",
                              listen(), "--dir", dir(), "--config", root_ / "etc/sandboxer.toml",
                              "--containerd", containerd_socket(), "--log-level", log_level_},
                             sandboxer_environment(),
                             sandboxer_log()});
  if (!child) give_up(child.error().message);
  sandboxer_process_ = std::move(*child);
}

// T27: containerd gives up a connection that nobody accepts for a second, and fails Controller
// calls until it has come back, some three seconds later at most.
void Lab::await_containerd() {
  const auto pods = cri().list_pods();
  if (!pods || pods->empty()) return;
  wait_until([&] { return cri().pod_status(pods->front().id()).has_value(); }, kBackoff);
}

void Lab::start_neighbour() {
  if (!neighbour_) return;
  const fs::path log = root_ / "log" / "neighbour.log";
  auto child = Child::spawn(
      {{(executable_dir() / neighbour_->sandboxer.program).string(), "--listen",
        root_ / "run/neighbour.sock", "--dir", root_ / "run/neighbour", "--config",
        root_ / "etc/neighbour.toml", "--containerd", containerd_socket(), "--log-level", "debug"},
       sandboxer_environment(),
       log});
  if (!child) give_up(child.error().message);
  neighbour_process_ = std::move(*child);
  const bool up = wait_until([&] { return count_lines(log, " ready") > 0; }, kStartPatience);
  if (!up) give_up(neighbour_->sandboxer.name + " does not come up");
}

int Lab::stop_sandboxer() {
  if (sandboxer_process_.pid() == 0) return 0;
  away_since_ = std::chrono::steady_clock::now();
  sandboxer_process_.signal(SIGTERM);
  const auto code = sandboxer_process_.wait(kStopPatience);
  if (!code) give_up(sandboxer_.name + " does not end on SIGTERM");
  return *code;
}

void Lab::kill_sandboxer() {
  away_since_ = std::chrono::steady_clock::now();
  sandboxer_process_.signal(SIGKILL);
  sandboxer_process_.wait(kStopPatience);
}

pid_t Lab::keeper_pid() const {
  return lab_keeper(dir());
}

void Lab::kill_both() {
  const pid_t keeper = keeper_pid();
  // Neither may see the other's end: both stand still first.
  sandboxer_process_.signal(SIGSTOP);
  if (keeper != 0) ::kill(keeper, SIGKILL);
  kill_sandboxer();
}

void Lab::kill_keeper() {
  const pid_t pid = keeper_pid();
  if (pid == 0) return;
  ::kill(pid, SIGKILL);
  if (!wait_until([&] { return keeper_pid() != pid; }, kStopPatience)) {
    give_up("the keeper does not end on SIGKILL");
  }
}

void Lab::start_containerd() {
  auto child = Child::spawn({{containerd_binary(), "--config", root_ / "etc/containerd.toml"},
                             environment(),
                             containerd_log()});
  if (!child) give_up(child.error().message);
  containerd_process_ = std::move(*child);
  const bool up = wait_until(
      [&] { return !containerd_process_.alive() || socket_accepts(containerd_socket()); },
      kStartPatience);
  if (!up || !containerd_process_.alive()) give_up("containerd does not come up");
  cri_ = std::make_unique<CriClient>(containerd_socket());
  const auto version = cri_->version(kStartPatience);
  if (!version) give_up("CRI does not answer: " + version.error().message);
}

int Lab::stop_containerd() {
  if (containerd_process_.pid() == 0) return 0;
  containerd_process_.signal(SIGTERM);
  const auto code = containerd_process_.wait(kStopPatience);
  if (!code) give_up("containerd does not end on SIGTERM");
  return *code;
}

void Lab::kill_containerd() {
  containerd_process_.signal(SIGKILL);
  containerd_process_.wait(kStopPatience);
}

void Lab::import_images() {
  const fs::path ctr = containerd_binary().parent_path() / "ctr";
  for (const auto& entry : fs::directory_iterator(environment_path("KUASAR_LAB_IMAGES"))) {
    if (entry.path().extension() != ".tar") continue;
    const auto done = run_checked({ctr, "--address", containerd_socket(), "--namespace", "k8s.io",
                                   "images", "import", entry.path()},
                                  {}, std::chrono::seconds(120));
    if (!done) give_up(done.error().message);
  }
  std::vector<std::string> images = {kBusyboxImage, kToolsImage};
  if (fs::exists(environment_path("KUASAR_LAB_IMAGES") / "wasm.tar")) images.push_back(kWasmImage);
  for (const std::string& image : images) {
    const bool known = wait_until([&] { return cri_->has_image(image).value_or(false); },
                                  std::chrono::seconds(20));
    if (!known) give_up("CRI does not know the image " + image);
  }
}

bool Lab::healthy() {
  return containerd_process_.alive() && (!sandboxer_.ours() || sandboxer_process_.alive());
}

void Lab::count_cpu() {
  for (const pid_t pid : {containerd_pid(), sandboxer_pid(), keeper_pid()}) {
    os::enter_cgroups(pid, os::cgroups_below(cgroup_parent(), "daemons"));
  }
}

bool Lab::has_failpoints() const {
  return read_text(sandboxer_log()).find("built with failpoints") != std::string::npos;
}

void Lab::arm(const std::string& failpoint, const std::string& action) {
  write_text(root_ / "failpoints" / failpoint, action);
}

bool Lab::disarm(const std::string& failpoint) {
  std::error_code ec;
  return fs::remove(root_ / "failpoints" / failpoint, ec);
}

fs::path Lab::named_runtime() const {
  if (sandboxer_.wasm()) return "wasmedge";
  const fs::path runtime = environment_path("KUASAR_LAB_RUNTIME");
  return runtime.empty() ? prefix_ / "usr/sbin/runc" : runtime;
}

std::string Lab::containerd_toml() const {
  return read_text(root_ / "etc/containerd.toml");
}

fs::path Lab::bundle(const std::string& container) const {
  return containerd_state() / "io.containerd.runtime.v2.task/k8s.io" / container;
}

CensusScope Lab::census_scope() const {
  CensusScope scope;
  scope.containerd = containerd_process_.pid();
  scope.daemon = sandboxer_process_.pid();
  scope.keeper = keeper_pid();
  scope.dirs = {dir(), containerd_state(), pods()};
  scope.netns_dirs = {containerd_state() / "io.containerd.grpc.v1.cri/netns"};
  return scope;
}

std::string Lab::log_tails(std::size_t lines) const {
  std::string text;
  if (sandboxer_.ours()) {
    text += "--- " + sandboxer_.name + ":\n" + shortened(tail_of(sandboxer_log(), lines));
  }
  return text + "--- containerd:\n" + shortened(tail_of(containerd_log(), lines));
}

void Lab::give_up(const std::string& words) const {
  throw std::runtime_error(words + "\n" + log_tails(20));
}

// The polite way first, for the sake of what the daemons write at their end (leak reports).
void Lab::tear_down() {
  sandboxer_process_.signal(SIGTERM);
  sandboxer_process_.wait(kStopPatience);
  neighbour_process_.signal(SIGTERM);
  neighbour_process_.wait(kStopPatience);
  containerd_process_.signal(SIGTERM);
  containerd_process_.wait(kStopPatience);
  cri_.reset();
  for (const std::string& item : remove_lab(root_, name_)) {
    fmt::print(stderr, "lab {}: could not remove {}\n", root_.string(), item);
  }
  if (environment_path("KUASAR_LAB_DIR").empty()) {
    std::error_code ec;
    fs::remove_all(root_, ec);
  }
}

std::vector<SandboxerUnderTest> sandboxers_under_test() {
  if (environment_path("KUASAR_LAB_HANDLER") == "runc") {
    return {{"containerd's own sandboxer", "runc", ""}};
  }
  return {{"runc-sandboxer", "kuasar-runc", "runc-sandboxer"}};
}

SandboxerUnderTest wasm_sandboxer() {
  return {"wasm-sandboxer", "kuasar-wasm", "wasm-sandboxer"};
}

}  // namespace kuasar::test
