#include "e2e/redelivery_bench.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <regex>
#include <stdexcept>
#include <system_error>

#include "containerd/task/v3/task.pb.h"
#include "os/cgroup.h"
#include "os/cgroup_files.h"
#include "support/controller_client.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace task = containerd::task::v3;

constexpr int kOk = 0;
constexpr int kNotFound = 5;
constexpr const char* kPod = "pod";
constexpr std::chrono::seconds kPatience(5);

// The image is one directory that all containers share, so that /tmp is theirs and ours. The trap
// stands before the first line is written: who sees that line may send signals.
std::string init_script(const Subject& subject) {
  return fmt::format(
      "log=/tmp/{}.log; trap 'echo usr1 >> $log' USR1; trap 'exit 7' TERM; sleep 1000 & p=$!;"
      "echo ran >> $log; echo said; {} while :; do wait $p; done",
      subject.id, subject.reads_stdin ? "cat > /dev/null; echo eof >> $log;" : "");
}

std::string exec_script(const Subject& subject) {
  return fmt::format(
      "log=/tmp/{}.log; trap 'echo exec usr1 >> $log' USR1; trap 'kill $p; exit 9' TERM;"
      "trap 'echo exec size $(stty size) >> $log' WINCH; sleep 1000 & p=$!;"
      "echo exec ran >> $log; echo said; while :; do wait $p; done",
      subject.id);
}

void replace_all(std::string& text, const std::string& what, const std::string& by) {
  if (what.empty()) return;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at)) {
    text.replace(at, what.size(), by);
    at += by.size();
  }
}

std::string outcome(const TtrpcProbe::Reply& reply) {
  return fmt::format("code {} ({})", reply.code, reply.message);
}

template <typename Response>
Response answer_of(const TtrpcProbe::Reply& reply, const std::string& what) {
  Response response;
  if (!response.ParseFromString(payload_of(reply, what))) {
    throw std::runtime_error(what + ": the answer does not parse");
  }
  return response;
}

// Whatever the daemon says.
bool frozen_by_the_kernel(const Subject& subject) {
  const auto dirs = os::cgroups_at(CgroupParent::path() + "/" + subject.id);
  const os::ControllerDir freezer =
      dirs ? os::find_controllers(*dirs).freezer : os::ControllerDir();
  if (!freezer) return false;
  if (!freezer.v2) return read_whole(freezer.file("freezer.state")) == "FROZEN\n";
  return os::keyed_value(read_whole(freezer.file("cgroup.events")), "frozen") == 1U;
}

void kill_and_await(const Subject& subject, int signal, TtrpcProbe& probe) {
  auto kill = request_for<task::KillRequest>(subject);
  kill.set_signal(static_cast<std::uint32_t>(signal));
  payload_of(probe.call("Kill", kill), "Kill");
  payload_of(probe.call("Wait", request_for<task::WaitRequest>(subject)), "Wait");
}

}  // namespace

std::string payload_of(const TtrpcProbe::Reply& reply, const std::string& what) {
  if (reply.code != kOk) throw std::runtime_error(what + ": " + outcome(reply));
  return reply.payload;
}

Bench::Bench() {
  fs::create_directory(daemon_.scratch() / "bundles");
  daemon_.start();
  {
    ControllerClient controller(daemon_.listen());
    const auto created = controller.create(pod_request(kPod));
    const auto started = controller.start(kPod);
    if (created.code != kOk || started.code != kOk) {
      throw std::runtime_error("no pod: " + created.message + started.message);
    }
  }
  // What the tests compare with is a daemon that came back and has no connection.
  daemon_.kill();
  daemon_.start();
  before_ = Census::take_settled(daemon_.scope());
}

std::unique_ptr<TtrpcProbe> Bench::connect() const {
  return std::make_unique<TtrpcProbe>(daemon_.task_socket());
}

Subject Bench::new_container(bool reads_stdin) {
  Subject subject;
  subject.id = fmt::format("container-{:03}", ++last_);
  subject.reads_stdin = reads_stdin;
  subject.create =
      task_request(daemon_, kPod, subject.id, {"/usr/bin/sh", "-c", init_script(subject)});
  if (reads_stdin) {
    const fs::path fifo = daemon_.scratch() / "bundles" / subject.id / "stdin";
    if (::mkfifo(fifo.c_str(), 0600) != 0) {
      throw std::system_error(errno, std::generic_category(), "mkfifo " + fifo.native());
    }
    subject.create.set_stdin(fifo.native());
  }
  return subject;
}

void Bench::name_exec(Subject& subject, bool terminal) {
  subject.exec = fmt::format("exec-{:03}", ++last_);
  subject.terminal = terminal;
  subject.exec_pid = 0;
  subject.exited_at.clear();
}

std::string Bench::image_dir(const Subject& subject) {
  return subject.create.bundle() + "/image";
}

std::string Bench::exec_request(const Subject& subject) {
  task::ExecProcessRequest request;
  request.set_id(subject.id);
  request.set_exec_id(subject.exec);
  request.set_terminal(subject.terminal);
  request.mutable_spec()->set_type_url("types.containerd.io/opencontainers/runtime-spec/1/Process");
  request.mutable_spec()->set_value(
      fmt::format(R"({{"args":["/usr/bin/sh","-c","{}"],"cwd":"/","env":["PATH=/usr/bin"],)"
                  R"("user":{{"uid":0,"gid":0}},"noNewPrivileges":true}})",
                  exec_script(subject)));
  return request.SerializeAsString();
}

void Bench::bring(Subject& subject, Stage container, TtrpcProbe& probe) {
  Subject init = subject;
  init.exec.clear();
  if (container == Stage::kNone) return;
  payload_of(probe.call("Create", subject.create), "Create");
  if (container == Stage::kCreated) return;
  payload_of(probe.call("Start", request_for<task::StartRequest>(init)), "Start");
  await_log(init, "ran");
  if (container == Stage::kStopped) stop(init, probe);
  if (container == Stage::kPaused) {
    payload_of(probe.call("Pause", request_for<task::PauseRequest>(init)), "Pause");
  }
}

void Bench::bring_exec(Subject& subject, Stage exec, TtrpcProbe& probe) {
  if (exec == Stage::kNone) return;
  payload_of(probe.call("Exec", exec_request(subject)), "Exec");
  if (exec == Stage::kCreated) return;
  payload_of(probe.call("Start", request_for<task::StartRequest>(subject)), "Start of an exec");
  await_log(subject, "exec ran");
  if (exec == Stage::kStopped) stop(subject, probe);
}

void Bench::stop(const Subject& subject, TtrpcProbe& probe) {
  kill_and_await(subject, SIGTERM, probe);
}

std::string Bench::state(Subject& subject, bool of_exec, TtrpcProbe& probe) const {
  auto request = request_for<task::StateRequest>(subject);
  if (!of_exec) request.clear_exec_id();
  const TtrpcProbe::Reply reply = probe.call("State", request);
  if (reply.code != kOk) return fmt::format("code {}", reply.code);
  auto response = answer_of<task::StateResponse>(reply, "State");
  // What State said first is what it must go on saying.
  std::uint32_t& pid = of_exec ? subject.exec_pid : subject.pid;
  if (pid == 0) pid = response.pid();
  if (response.has_exited_at() && of_exec == !subject.exec.empty() && subject.exited_at.empty()) {
    subject.exited_at = response.exited_at().ShortDebugString();
  }
  return names_for(subject, response.ShortDebugString());
}

std::string Bench::snapshot(Subject& subject, TtrpcProbe& probe) const {
  std::string text = "init: " + state(subject, false, probe);
  if (!subject.exec.empty()) text += "\nexec: " + state(subject, true, probe);
  if (frozen_by_the_kernel(subject)) text += "\nfrozen";
  if (fs::exists(image_dir(subject) + "/inventory.img")) text += "\ncheckpointed";
  return text + "\nlog: " + log(subject);
}

std::string Bench::await_snapshot(Subject& subject, TtrpcProbe& probe,
                                  const std::string& wanted) const {
  std::string last;
  eventually([&] { return (last = snapshot(subject, probe)) == wanted; }, kPatience);
  return last;
}

fs::path Bench::log_file(const Subject& subject) const {
  return daemon_.scratch() / "image" / "tmp" / (subject.id + ".log");
}

void Bench::skip_log(Subject& subject) const {
  subject.log_from = read_whole(log_file(subject)).size();
}

std::string Bench::log(const Subject& subject) const {
  std::string text = read_whole(log_file(subject));
  text.erase(0, subject.log_from);
  replace_all(text, "\n", "; ");
  return text;
}

void Bench::await_log(const Subject& subject, const std::string& line) const {
  if (eventually([&] { return log(subject).find(line + ";") != std::string::npos; })) return;
  throw std::runtime_error("no line \"" + line + "\" in the log: " + log(subject));
}

std::string Bench::names_for(const Subject& subject, std::string text) const {
  replace_all(text, subject.id, "ID");
  replace_all(text, subject.exec, "EXEC");
  if (!subject.exited_at.empty()) replace_all(text, subject.exited_at, "AS STATE SAYS");
  // Whichever daemon gave the answer.
  text = std::regex_replace(text, std::regex("shim_pid: [1-9][0-9]*"), "shim_pid: A DAEMON");
  const auto name = [&text](std::uint32_t pid, const char* by) {
    if (pid == 0) return;
    text = std::regex_replace(text, std::regex("pid: " + std::to_string(pid) + "\\b"),
                              std::string("pid: ") + by);
  };
  name(subject.pid, "INIT");
  name(subject.exec_pid, "OF EXEC");
  return std::regex_replace(text, std::regex("pid: [0-9]+"), "pid: OTHER");
}

std::string Bench::describe(const Subject& subject, const TtrpcProbe::Reply& reply,
                            google::protobuf::Message& response) const {
  if (reply.code != kOk) return names_for(subject, outcome(reply));
  if (!response.ParseFromString(reply.payload)) return "an answer that does not parse";
  return "OK " + names_for(subject, response.ShortDebugString());
}

void Bench::remove_bundle(const Subject& subject) {
  if (!subject.exec.empty()) return;
  unmount_below(subject.create.bundle());
  fs::remove_all(subject.create.bundle());
}

void Bench::clean_up(const Subject& subject, TtrpcProbe& probe) const {
  const TtrpcProbe::Reply reply = probe.call("State", request_for<task::StateRequest>(subject));
  if (reply.code == kNotFound) return remove_bundle(subject);
  const auto state = answer_of<task::StateResponse>(reply, "State");
  const bool lives = state.status() == containerd::v1::types::RUNNING ||
                     state.status() == containerd::v1::types::PAUSED ||
                     (state.status() == containerd::v1::types::CREATED && subject.exec.empty());
  if (lives) kill_and_await(subject, SIGKILL, probe);
  const auto remove = request_for<task::DeleteRequest>(subject);
  const std::string first = payload_of(probe.call("Delete", remove), "Delete");
  const std::string second = payload_of(probe.call("Delete", remove), "the second Delete");
  if (first != second) throw std::runtime_error("the second Delete has another answer");
  remove_bundle(subject);
}

std::string Bench::leftovers() const {
  const auto left = left_behind(before_, daemon_);
  return left.empty() ? std::string() : listed(left);
}

}  // namespace kuasar::test
