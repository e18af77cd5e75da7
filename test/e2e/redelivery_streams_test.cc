#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <thread>

#include "base/unique_fd.h"
#include "containerd/task/v3/task.pb.h"
#include "e2e/redelivery_bench.h"

// containerd reads a container's output until the end of file, without a timeout: whatever a dead
// daemon had begun, the next one must let that end come.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace task = containerd::task::v3;

constexpr int kOk = 0;

/// Reads a FIFO as containerd does: until the end of file, and never again. It reads from before
/// the call that names the FIFO.
class Reader {
 public:
  Reader(const Subject& subject, const char* name)
      : path_(fs::path(subject.create.bundle()) / name) {
    if (::mkfifo(path_.c_str(), 0600) != 0) {
      throw std::system_error(errno, std::generic_category(), "mkfifo " + path_.native());
    }
    thread_ = std::thread([this] { read(); });
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() {
    // In case it has never had a writer, or still has one.
    giving_up_ = true;
    const UniqueFd writer(::open(path_.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    thread_.join();
  }

  std::string path() const { return path_.native(); }
  bool ended() const { return ended_; }
  bool ends() const {
    return eventually([this] { return ended(); });
  }
  /// Once it has ended.
  const std::string& text() const { return text_; }

 private:
  void read() {
    const UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    while (!giving_up_) {
      pollfd entry{fd.get(), POLLIN, 0};
      if (::poll(&entry, 1, 100) <= 0) continue;
      char bytes[256];
      const ssize_t size = ::read(fd.get(), bytes, sizeof bytes);
      if (size <= 0) break;
      text_.append(bytes, static_cast<std::size_t>(size));
    }
    ended_ = !giving_up_;
  }

  fs::path path_;
  std::string text_;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> giving_up_ = false;
  std::thread thread_;
};

std::string exec_with(const Subject& subject, const Reader& reader, const std::string& program) {
  task::ExecProcessRequest request;
  REQUIRE(request.ParseFromString(Bench::exec_request(subject)));
  request.set_stdout(reader.path());
  std::string& spec = *request.mutable_spec()->mutable_value();
  spec.replace(spec.find("/usr/bin/sh"), std::string("/usr/bin/sh").size(), program);
  return request.SerializeAsString();
}

// The stream of the call.
std::uint32_t send(TtrpcProbe& probe, const char* method, const std::string& payload) {
  const std::uint32_t stream = probe.next_stream();
  REQUIRE(probe.send(
      TtrpcProbe::request(stream, std::string(TtrpcProbe::kTaskService), method, payload)));
  return stream;
}

void finish(Bench& bench, Subject subject, std::unique_ptr<TtrpcProbe>& caller) {
  caller.reset();
  subject.exec.clear();
  bench.clean_up(subject, *bench.connect());
  CHECK(bench.leftovers() == "");
}

}  // namespace

TEST_CASE("redelivery: the output of a half-done Create goes on when it is made anew, else it ends",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  if (!bench.daemon().has_failpoints()) SKIP("the sandboxer was built without failpoints");
  auto caller = bench.connect();
  Subject subject = bench.new_container(false);
  {
    const Reader reader(subject, "stdout");
    subject.create.set_stdout(reader.path());
    bench.daemon().arm("runtime.create.ended", "kill");
    const std::uint32_t create = send(*caller, "Create", subject.create.SerializeAsString());
    REQUIRE(bench.daemon().died());
    CHECK_FALSE(reader.ended());
    SECTION("made anew") {
      bench.daemon().start();
      const auto reply = caller->reply_to(create);
      REQUIRE(reply);
      CHECK(reply->code == kOk);
      payload_of(caller->call("Start", request_for<task::StartRequest>(subject)), "Start");
      bench.await_log(subject, "ran");
      bench.stop(subject, *caller);
      CHECK(reader.ends());
      CHECK(reader.text() == "said\n");
    }
    SECTION("nobody asks for it any more") {
      caller.reset();
      bench.daemon().start();
      CHECK(reader.ends());
    }
    SECTION("it fails when it is run again") {
      fs::remove(fs::path(subject.create.bundle()) / "config.json");
      bench.daemon().start();
      const auto reply = caller->reply_to(create);
      REQUIRE(reply);
      CHECK(reply->code != kOk);
      CHECK(reader.ends());
    }
  }
  finish(bench, subject, caller);
}

TEST_CASE("redelivery: an exec that could not be started ends its output",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  if (!bench.daemon().has_failpoints()) SKIP("the sandboxer was built without failpoints");
  auto caller = bench.connect();
  Subject subject = bench.new_container(false);
  bench.bring(subject, Stage::kRunning, *caller);
  bench.name_exec(subject, false);
  auto reader = std::make_unique<Reader>(subject, "exec-stdout");
  payload_of(caller->call("Exec", exec_with(subject, *reader, "/no/such/program")), "Exec");
  std::string point;
  SECTION("the OCI runtime has been started") {
    point = "runtime.exec.spawned";
  }
  SECTION("the OCI runtime has failed") {
    point = "runtime.exec.ended";
  }
  bench.daemon().arm(point, "kill");
  const std::uint32_t start =
      send(*caller, "Start", request_for<task::StartRequest>(subject).SerializeAsString());
  REQUIRE(bench.daemon().died());
  bench.daemon().start();
  const auto reply = caller->reply_to(start);
  REQUIRE(reply);
  CHECK(reply->code != kOk);
  CHECK(reply->message.find("/no/such/program") != std::string::npos);
  CHECK(reader->ends());
  reader.reset();
  finish(bench, subject, caller);
}

TEST_CASE("redelivery: an exec that ends while no daemon is there ends its output",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  auto caller = bench.connect();
  Subject subject = bench.new_container(false);
  bench.bring(subject, Stage::kRunning, *caller);
  bench.name_exec(subject, false);
  auto reader = std::make_unique<Reader>(subject, "exec-stdout");
  payload_of(caller->call("Exec", exec_with(subject, *reader, "/usr/bin/sh")), "Exec");
  payload_of(caller->call("Start", request_for<task::StartRequest>(subject)), "Start");
  bench.await_log(subject, "exec ran");
  bench.snapshot(subject, *caller);
  const std::uint32_t wait =
      send(*caller, "Wait", request_for<task::WaitRequest>(subject).SerializeAsString());
  // Answered in order: the Wait has been read. A daemon that is killed before it has noted that it
  // gave this answer leaves it to the next one to give it again.
  const std::uint32_t state =
      send(*caller, "State", request_for<task::StateRequest>(subject).SerializeAsString());
  REQUIRE(caller->reply_to(state));
  bench.daemon().kill();
  ::kill(static_cast<pid_t>(subject.exec_pid), SIGTERM);
  bench.daemon().start();
  const auto reply = caller->reply_to(wait);
  REQUIRE(reply);
  task::WaitResponse response;
  REQUIRE(response.ParseFromString(reply->payload));
  CHECK(response.exit_status() == 9);
  // Its caller was there all the time and has no reason to ask for the State.
  CHECK(reader->ends());
  CHECK(reader->text() == "said\n");
  reader.reset();
  finish(bench, subject, caller);
}

TEST_CASE("D6 redelivery: a request under which the daemon crashes twice is refused, not run again",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  auto caller = bench.connect();
  Subject subject = bench.new_container(false);
  bench.bring(subject, Stage::kRunning, *caller);
  // It waits for the whole test.
  const std::uint32_t wait =
      send(*caller, "Wait", request_for<task::WaitRequest>(subject).SerializeAsString());
  bench.name_exec(subject, false);
  auto reader = std::make_unique<Reader>(subject, "exec-stdout");
  payload_of(caller->call("Exec", exec_with(subject, *reader, "/usr/bin/sh")), "Exec");
  const std::string start = request_for<task::StartRequest>(subject).SerializeAsString();
  if (!bench.daemon().has_failpoints()) SKIP("the sandboxer was built without failpoints");
  bench.daemon().arm("task.Start.before", "abort");
  const std::uint32_t started = send(*caller, "Start", start);
  REQUIRE(bench.daemon().died());
  bench.daemon().arm("task.Start.before", "abort");
  REQUIRE_THROWS(bench.daemon().start());
  bench.daemon().start();
  const auto reply = caller->reply_to(started);
  REQUIRE(reply);
  CHECK(reply->code == 13);
  CHECK(reply->message.find("has crashed twice while it ran Start") != std::string::npos);
  // Waits are not to blame, nor is what comes anew.
  CHECK(caller->call("Start", request_for<task::StartRequest>(subject)).code == kOk);
  subject.exec.clear();
  auto kill = request_for<task::KillRequest>(subject);
  kill.set_signal(SIGKILL);
  CHECK(bench.connect()->call("Kill", kill).code == kOk);
  const auto ended = caller->reply_to(wait);
  REQUIRE(ended);
  CHECK(ended->code == kOk);
  reader.reset();
  finish(bench, subject, caller);
}

}  // namespace kuasar::test
