#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "e2e/table.h"
#include "support/process.h"
#include "support/wait.h"

// kuasar-ctl against a daemon at work, compared with what CRI says.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

fs::path program() {
  if (const char* bin = std::getenv("KUASAR_LAB_BIN")) return fs::path(bin) / "kuasar-ctl";
  return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / "kuasar-ctl";
}

std::vector<std::string> command_line(const Case& e, std::vector<std::string> words) {
  auto& lab = const_cast<Case&>(e).lab();
  std::vector<std::string> argv{program(), "--dir", lab.dir()};
  argv.insert(argv.end(), words.begin(), words.end());
  return argv;
}

Ran ctl(Case& e, std::vector<std::string> words) {
  const Result<Ran> ran = run_program(command_line(e, std::move(words)));
  INFO("kuasar-ctl: " << (ran ? "" : ran.error().message));
  REQUIRE(ran);
  return *ran;
}

json::value ctl_json(Case& e, std::vector<std::string> words) {
  const Ran ran = ctl(e, std::move(words));
  INFO(ran.output);
  REQUIRE(ran.code == 0);
  boost::system::error_code ec;
  json::value parsed = json::parse(ran.output, ec);
  REQUIRE_FALSE(ec);
  return parsed;
}

std::string text(const json::value& value, const char* key) {
  return value.at(key).as_string().c_str();
}

// The pod in `list`'s answer; null when it is not there.
const json::value* find_pod(const json::value& list, const std::string& id) {
  for (const json::value& pod : list.at("pods").as_array()) {
    if (text(pod, "id") == id) return &pod;
  }
  return nullptr;
}

// The commands that ran in containers for kuasar-ctl have left nothing.
void check_no_execs(Case& e) {
  CHECK(wait_until(
      [&] {
        const json::value health = ctl_json(e, {"health", "-o", "json"});
        return health.at("daemons").at(0).at("execs") == 0 && fs::is_empty(e.lab().dir() / "ctl");
      },
      std::chrono::seconds(10)));
}

// Whether a `sleep` itself runs, not only somebody who has it in his command line.
bool sleeps(const std::string& seconds) {
  for (const pid_t pid : processes_with("sleep " + seconds)) {
    if (read_text(fmt::format("/proc/{}/comm", pid)) == "sleep\n") return true;
  }
  return false;
}

// A process whose standard streams are ours.
class Interactive {
 public:
  explicit Interactive(const std::vector<std::string>& argv) {
    int master = -1;
    winsize size{};
    size.ws_col = 91;
    size.ws_row = 17;
    pid_ = ::forkpty(&master, nullptr, nullptr, &size);
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      std::vector<char*> words;
      for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
      words.push_back(nullptr);
      ::execv(words[0], words.data());
      ::_exit(127);
    }
    master_.reset(master);
  }
  Interactive(const Interactive&) = delete;
  Interactive& operator=(const Interactive&) = delete;
  ~Interactive() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  void type(const std::string& bytes) {
    REQUIRE(::write(master_.get(), bytes.data(), bytes.size()) ==
            static_cast<ssize_t>(bytes.size()));
  }
  void resize(unsigned short columns, unsigned short rows) {
    winsize size{};
    size.ws_col = columns;
    size.ws_row = rows;
    REQUIRE(::ioctl(master_.get(), TIOCSWINSZ, &size) == 0);
  }
  bool shows(const std::string& part) {
    return wait_until(
        [&] {
          pollfd ready{master_.get(), POLLIN, 0};
          char buffer[4096];
          while (::poll(&ready, 1, 0) > 0 && (ready.revents & POLLIN) != 0) {
            const ssize_t n = ::read(master_.get(), buffer, sizeof buffer);
            if (n <= 0) break;
            seen_.append(buffer, static_cast<std::size_t>(n));
          }
          return seen_.find(part) != std::string::npos;
        },
        std::chrono::seconds(15));
  }
  int exit_code() {
    int status = 0;
    bool ended = wait_until([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; },
                            std::chrono::seconds(15));
    REQUIRE(ended);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  UniqueFd master_;
  std::string seen_;
};

}  // namespace

TEST_CASE("ctl: list and inspect say what CRI says", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const Container second = e.sleeper(pod);

    const json::value list = ctl_json(e, {"list", "-o", "json"});
    const auto pods = e.cri().list_pods();
    REQUIRE(pods);
    CHECK(list.at("pods").as_array().size() == pods->size());
    const json::value* row = find_pod(list, pod.id);
    REQUIRE(row != nullptr);
    const auto& metadata = pod.config.metadata();
    CHECK(text(*row, "name") == metadata.name());
    CHECK(text(*row, "namespace") == metadata.namespace_());
    CHECK(text(*row, "uid") == metadata.uid());
    CHECK(text(*row, "state") == "running");
    const auto containers = e.cri().list_containers();
    REQUIRE(containers);
    CHECK(row->at("containers").as_array().size() == containers->size());
    for (const json::value& one : row->at("containers").as_array()) {
      const auto status = e.cri().container_status(text(one, "id"));
      REQUIRE(status);
      CHECK(text(one, "name") == status->metadata().name());
      CHECK(status->state() == cri::CONTAINER_RUNNING);
      CHECK(text(one, "state") == "running");
      CHECK(fs::exists(fmt::format("/proc/{}", one.at("pid").as_int64())));
    }

    const json::value inspected = ctl_json(e, {"inspect", pod.id.substr(0, 20)});
    CHECK(text(inspected.at("sandbox"), "id") == pod.id);
    CHECK(inspected.at("containers").as_array().size() == 2);
    CHECK(ctl(e, {"inspect", metadata.name()}).code == 0);
    const Ran unknown = ctl(e, {"inspect", "nobody"});
    CHECK(unknown.code == 1);
    CHECK(unknown.output.find("no pod \"nobody\"") != std::string::npos);
    const Ran table = ctl(e, {"list"});
    for (const std::string& line : lines_of(table.output)) CHECK(line.size() <= 100);
    CHECK(table.output.find("  " + container.id.substr(0, 13)) != std::string::npos);
    CHECK(ctl(e, {"list", "-q"}).output.find(pod.id + "\n") != std::string::npos);

    const json::value stats = ctl_json(e, {"stats", "-o", "json"});
    REQUIRE(stats.at("containers").as_array().size() == 2);
    for (const json::value& usage : stats.at("containers").as_array()) {
      CHECK((text(usage, "container") == container.id || text(usage, "container") == second.id));
      CHECK(usage.at("pids").to_number<int>() >= 1);
      CHECK(usage.at("memory_bytes").to_number<long long>() > 0);
    }
  });
}

TEST_CASE("ctl: inspect --timing shows the steps and waits of a start", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const auto asked = std::chrono::steady_clock::now();
    const Pod pod = e.run_pod();
    e.sleeper(pod);
    const std::chrono::duration<double, std::milli> whole =
        std::chrono::steady_clock::now() - asked;
    const json::value timing = ctl_json(e, {"inspect", pod.id, "--timing", "-o", "json"});
    REQUIRE(timing.at("timelines").as_array().size() == 2);
    std::map<std::string, double> took;
    for (const json::value& timeline : timing.at("timelines").as_array()) {
      CHECK(timeline.at("dropped") == 0);
      double sum = 0;
      for (const json::value& span : timeline.at("spans").as_array()) {
        const double one = span.at("took_ms").to_number<double>();
        took[text(span, "name")] += one;
        if (span.at("depth") == 0) sum += one;
      }
      // Steps and gaps are all of it, and no more than CRI's callers waited for.
      CHECK(sum > 0);
      CHECK(sum < whole.count());
    }
    for (const char* step :
         {"Controller.Create", "Controller.Start", "unshare, sysctls, pins", "/dev/shm", "thread",
          "Task.Create", "attach to the pod", "root file system", "Task.Start"}) {
      INFO(step);
      CHECK(took[step] > 0);
    }
    CHECK(took["Controller.Start"] > took["unshare, sysctls, pins"]);
    if (e.lab().sandboxer().handler == "kuasar-runc") {
      CHECK(took["OCI runtime"] > took["spawn the OCI runtime"]);
      CHECK(took["Task.Create"] > took["OCI runtime"]);
    }
    const Ran shown = ctl(e, {"inspect", pod.id, "--timing"});
    INFO(shown.output);
    for (const std::string& line : lines_of(shown.output)) CHECK(line.size() <= 100);
    CHECK(shown.output.find("Task.Create") != std::string::npos);

    e.lab().stop_sandboxer();
    e.lab().start_sandboxer();
    CHECK(ctl(e, {"inspect", pod.id, "--timing"}).output.find("an earlier daemon started it") !=
          std::string::npos);
  });
}

TEST_CASE("ctl: health is well, counts, and stays so over a restart", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const Pod pod = e.run_pod();
    e.sleeper(pod);
    const json::value before = ctl_json(e, {"health", "-o", "json"}).at("daemons").at(0);
    CHECK(before.at("findings").as_array().empty());
    CHECK(before.at("pid") == e.lab().sandboxer_pid());
    CHECK(before.at("keeper").at("pid") == e.lab().keeper_pid());
    CHECK(before.at("pods") == 1);
    CHECK(before.at("containers") == 1);
    e.lab().stop_sandboxer();
    const Ran away = ctl(e, {"health"});
    CHECK(away.code == 1);
    CHECK(away.output.find("no sandboxer answers on") != std::string::npos);
    e.lab().start_sandboxer();
    const json::value after = ctl_json(e, {"health", "-o", "json"}).at("daemons").at(0);
    CHECK(after.at("pid") == e.lab().sandboxer_pid());
    CHECK(after.at("containers") == 1);

    // What it cannot explain it names.
    const fs::path odd = e.lab().dir() / "sandboxes" / "odd file";
    write_text(odd, "");
    const Ran found = ctl(e, {"health"});
    fs::remove(odd);
    CHECK(found.code == 1);
    CHECK(found.output.find("odd file") != std::string::npos);
  });
}

TEST_CASE("ctl: exec passes streams and the exit code through", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto exec = [&](std::vector<std::string> flags, const std::string& script) {
      std::vector<std::string> words{"exec"};
      words.insert(words.end(), flags.begin(), flags.end());
      words.insert(words.end(), {container.id.substr(0, 20), "--", "sh", "-c", script});
      return ctl(e, std::move(words));
    };
    const Ran both = exec({}, "echo out; echo err >&2; exit 7");
    CHECK(both.code == 7);
    CHECK(both.output.find("out\n") != std::string::npos);
    CHECK(both.output.find("err\n") != std::string::npos);
    CHECK(exec({"-e", "WORD=x y", "-w", "/tmp"}, "echo $WORD $PWD").output == "x y /tmp\n");
    CHECK(exec({}, "kill -9 $$").code == 137);
    const auto by_name =
        ctl(e, {"exec", pod.config.metadata().name() + "/" + e.status(container).metadata().name(),
                "--", "readlink", "/proc/self/ns/pid"});
    CHECK(by_name.output == exec({}, "readlink /proc/1/ns/pid").output);
    const Ran missing = ctl(e, {"exec", container.id, "--", "/no/such/program"});
    CHECK(missing.code == 1);
    CHECK(missing.output.find("no such file or directory") != std::string::npos);
    CHECK(ctl(e, {"exec", "nobody", "--", "true"}).code == 1);

    // Standard input from a file, to its end, and 4 MiB of output.
    write_text(e.scratch() / "in", std::string(300000, 'i'));
    std::vector<std::string> argv = command_line(
        e, {"exec", "-i", container.id, "--", "sh", "-c", "wc -c; head -c 4194304 /dev/zero"});
    std::string line = "exec";
    for (const std::string& word : argv) line += " '" + word + "'";
    const Result<Ran> piped =
        run_program({"/bin/sh", "-c", line + " <" + (e.scratch() / "in").native()});
    REQUIRE(piped);
    CHECK(piped->code == 0);
    CHECK(piped->output.substr(0, 7) == "300000\n");
    CHECK(piped->output.size() == 7 + 4194304);
    check_no_execs(e);
  });
}

TEST_CASE("ctl: exec with a terminal: size, input, Ctrl-C", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    {
      Interactive shell(command_line(e, {"exec", "-it", container.id, "--", "sh"}));
      shell.type("stty size; tty\n");
      CHECK(shell.shows("17 91"));
      CHECK(shell.shows("/dev/pts/"));
      shell.resize(50, 20);
      // The new size arrives some time after the change.
      shell.type("while [ \"$(stty size)\" != '20 50' ]; do :; done; echo re''sized\n");
      CHECK(shell.shows("resized"));
      shell.type("sleep 3622 || echo inter''rupted\n");
      CHECK(wait_until([] { return sleeps("3622"); }, std::chrono::seconds(10)));
      shell.type("\x03");
      CHECK(wait_until([] { return !sleeps("3622"); }, std::chrono::seconds(10)));
      shell.type("exit 9\n");
      CHECK(shell.shows("exit 9"));
      CHECK(shell.exit_code() == 9);
    }
    check_no_execs(e);
  });
}

TEST_CASE("ctl: a command ends with its client, and with the daemon", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto begin = [&](const std::string& seconds) {
      Result<Child> child =
          Child::spawn({command_line(e, {"exec", container.id, "--", "sleep", seconds}), {}, {}});
      REQUIRE(child);
      REQUIRE(wait_until([&] { return sleeps(seconds); }, std::chrono::seconds(10)));
      return std::move(*child);
    };
    const auto gone = [](const std::string& seconds) {
      return wait_until([&] { return !sleeps(seconds); }, std::chrono::seconds(10));
    };
    for (const int signal : {SIGKILL, SIGTERM}) {
      Child child = begin("3633");
      child.signal(signal);
      CHECK(child.wait(std::chrono::seconds(10)) == (signal == SIGKILL ? 137 : 1));
      CHECK(gone("3633"));
      check_no_execs(e);
    }
    Child stopped = begin("3634");
    e.lab().stop_sandboxer();
    CHECK(stopped.wait(std::chrono::seconds(10)) == 1);
    CHECK(gone("3634"));
    e.lab().start_sandboxer();
    Child killed = begin("3635");
    e.lab().kill_sandboxer();
    CHECK(killed.wait(std::chrono::seconds(10)) == 1);
    e.lab().start_sandboxer();
    CHECK(gone("3635"));
    check_no_execs(e);
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("ctl: doctor finds the lab in order", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const Ran ran = ctl(e, {"doctor", "-o", "json"});
    INFO(ran.output);
    boost::system::error_code ec;
    const json::value report = json::parse(ran.output, ec);
    REQUIRE_FALSE(ec);
    std::map<std::string, std::string> levels;
    for (const json::value& finding : report.at("findings").as_array()) {
      levels[text(finding, "check")] = text(finding, "level");
    }
    const std::string handler = e.lab().sandboxer().handler;
    for (const std::string& check :
         {std::string("root"), std::string("containerd"), std::string("proxy plugin"),
          "handler " + handler, std::string("containerd-shim-runc-v2"), e.lab().sandboxer().name,
          std::string("mount namespace")}) {
      INFO(check);
      CHECK(levels[check] == "ok");
    }
    write_text(e.scratch() / "config.toml", "version = 3\n");
    const Ran bare = ctl(e, {"doctor", "--containerd-config", e.scratch() / "config.toml"});
    CHECK(bare.code == 1);
    CHECK(bare.output.find("FAIL  proxy plugin: containerd knows none at") != std::string::npos);
    for (const std::string& line : lines_of(bare.output)) CHECK(line.size() <= 100);
  });
}

TEST_CASE("ctl: config check names the file and the line", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("kuasar-ctl");
    const fs::path good = e.scratch() / "runc.toml";
    const fs::path wrong = e.scratch() / "wrong.toml";
    write_text(good, "log_level = \"debug\"\n");
    write_text(wrong, "log_level = \"debug\"\nruntim = \"crun\"\n");
    CHECK(ctl(e, {"config", "check", good}).code == 0);
    const Ran refused = ctl(e, {"config", "check", good, wrong});
    CHECK(refused.code == 1);
    CHECK(refused.output.find(wrong.native() + ":2: ") != std::string::npos);
  });
}

}  // namespace kuasar::test
