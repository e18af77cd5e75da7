#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "async/task_group.h"
#include "base/files.h"
#include "oci/runtime.h"
#include "oci/runtime_log.h"
#include "os/direct_spawner.h"
#include "os/pidfd.h"
#include "support/recording_spawner.h"

namespace kuasar::oci {
namespace {

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::StartsWith;
using test::Playback;
using test::RecordingSpawner;

template <typename T>
Task<> keep(Task<T> task, std::optional<T>& out) {
  out = co_await std::move(task);
}

// A directory of a container, with a program that calls itself runc.
class Lab {
 public:
  Lab() {
    char name[] = "/tmp/kuasar-runtime-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir_ = name;
    program("#!/bin/sh\nexit 0\n");
    std::filesystem::create_directory(dir_ + "/oci");
    config.binary = dir_ + "/runc";
    config.root = dir_ + "/oci";
  }
  Lab(const Lab&) = delete;
  Lab& operator=(const Lab&) = delete;
  ~Lab() { std::filesystem::remove_all(dir_); }

  void program(std::string_view script) const { REQUIRE(write_file(dir_ + "/runc", script, 0700)); }
  CreateArgs create_args() const {
    CreateArgs args;
    args.id = "c1";
    args.bundle = dir_;
    args.pid_file = dir_ + "/init.pid";
    args.log_file = log();
    return args;
  }
  ExecArgs exec_args() const {
    ExecArgs args;
    args.id = "c1";
    args.exec = "e1";
    args.process_file = dir_ + "/exec-e1.json";
    args.pid_file = dir_ + "/exec-e1.pid";
    args.log_file = log();
    return args;
  }
  std::string log() const { return dir_ + "/runtime.log"; }
  const std::string& dir() const { return dir_; }

  template <typename T>
  T run(Task<T> task) {
    std::optional<T> out;
    spawn_root(io.get_executor(), keep(std::move(task), out));
    io.restart();
    io.run();
    REQUIRE(out);
    return std::move(*out);
  }

  asio::io_context io;
  FairGate gate{1, 1};
  RuntimeConfig config;
  RecordingSpawner spawner;

 private:
  std::string dir_;
};

Task<bool> abandon(OciRuntime& runtime) {
  co_await runtime.abandon_create("c1");
  co_return true;
}

// What a test's runtime leaves behind: a pid file, lines in its log.
Playback leaves(int exit_code, std::string pid_file, std::string pid, std::string log_file = {},
                std::string log = {}) {
  Playback playback;
  playback.exit_code = exit_code;
  playback.effect = [=](const os::ProcessSpec&) {
    if (!pid.empty()) REQUIRE(write_file(pid_file, pid));
    if (!log.empty()) REQUIRE(write_file(log_file, log));
  };
  return playback;
}

}  // namespace

TEST_CASE("oci runtime: create runs the runtime with the container's stdio and answers the pid") {
  Lab lab;
  ::setenv("NOTIFY_SOCKET", "/run/notify", 1);
  ::setenv("LISTEN_FDS", "1", 1);
  CreateArgs args = lab.create_args();
  args.stdout_fd = 11;
  args.stderr_fd = 12;
  args.systemd_cgroup = true;
  args.no_pivot = true;
  lab.spawner.play(leaves(0, args.pid_file, "4242\n"));
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  const Result<pid_t> pid = lab.run(runtime.create(args));
  REQUIRE(pid);
  CHECK(*pid == 4242);

  REQUIRE(lab.spawner.spawned().size() == 1);
  const auto& [key, spec] = lab.spawner.spawned()[0];
  CHECK(key == "c1/-/create/0");
  CHECK(spec.argv == Argv{lab.dir() + "/runc", "--root", lab.dir() + "/oci", "--log", lab.log(),
                          "--log-format", "json", "--systemd-cgroup", "create", "--bundle",
                          lab.dir(), "--pid-file", lab.dir() + "/init.pid", "--no-pivot", "c1"});
  CHECK(spec.env == std::vector<std::string>{std::string("PATH=") + std::getenv("PATH")});
  REQUIRE(spec.fds.size() == 2);
  CHECK((spec.fds[0].parent_fd == 11 && spec.fds[0].child_fd == 1));
  CHECK((spec.fds[1].parent_fd == 12 && spec.fds[1].child_fd == 2));
  ::unsetenv("NOTIFY_SOCKET");
  ::unsetenv("LISTEN_FDS");
}

TEST_CASE("oci runtime: start and delete print into the log file") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  Playback prints;
  prints.effect = [](const os::ProcessSpec& spec) {
    for (const os::FdMapping& fd : spec.fds) REQUIRE(::write(fd.parent_fd, "x", 1) == 1);
  };
  lab.spawner.play(prints);
  REQUIRE(lab.run(runtime.start("c1", "p1", lab.log())));
  CHECK(read_file(lab.log()).value() == "xx");
  REQUIRE(lab.run(runtime.remove("c1", "p1", lab.log(), true)));
  CHECK(read_file(lab.log()).value().empty());

  const auto& calls = lab.spawner.spawned();
  REQUIRE(calls.size() == 2);
  CHECK(calls[0].key == "c1/-/start/0");
  CHECK(calls[0].spec.argv == Argv{lab.dir() + "/runc", "--root", lab.dir() + "/oci", "--log",
                                   lab.log(), "--log-format", "json", "start", "c1"});
  CHECK(calls[0].spec.fds.size() == 2);
  CHECK(calls[1].key == "c1/-/delete/0");
  CHECK(calls[1].spec.argv.back() == "c1");
  CHECK(calls[1].spec.argv[calls[1].spec.argv.size() - 2] == "--force");
}

TEST_CASE("oci runtime: the runtime's own last error is what the user gets") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  const CreateArgs args = lab.create_args();
  lab.spawner.play(leaves(
      1, args.pid_file, "", args.log_file,
      "{\"level\":\"error\",\"msg\":\"an earlier one\"}\n"
      "\xff\xfe garbage\n"
      "{\"level\":\"error\",\"msg\":\"runc create failed: unable to start container process: "
      "exec: \\\"nope\\\": executable file not found in $PATH\",\"time\":\"t\"}\n"
      "{\"level\":\"warning\",\"msg\":\"a warning\"}\n{\"level\":\"err"));
  const auto created = lab.run(runtime.create(args));
  REQUIRE_FALSE(created);
  CHECK(created.error().message ==
        "OCI runtime create failed: runc create failed: unable to start container process: exec: "
        "\"nope\": executable file not found in $PATH");
  CHECK(created.error().code == Code::kUnknown);

  lab.spawner.play(leaves(1, "", "", args.log_file,
                          "{\"level\":\"error\",\"msg\":\"cannot start a stopped container\"}"));
  const auto started = lab.run(runtime.start("c1", "p1", args.log_file));
  REQUIRE_FALSE(started);
  CHECK(started.error().message ==
        "OCI runtime start failed: runc: cannot start a stopped container");
}

TEST_CASE("oci runtime: an error of an earlier step is not blamed for this one") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  REQUIRE(write_file(lab.log(), "{\"level\":\"error\",\"msg\":\"old\"}\n"));
  Playback fails;
  fails.exit_code = 1;
  lab.spawner.play(fails);
  const auto created = lab.run(runtime.create(lab.create_args()));
  REQUIRE_FALSE(created);
  CHECK_THAT(created.error().message,
             StartsWith("OCI runtime create failed: runc ended with exit code 1 and wrote nothing "
                        "into its log; check"));
  fails.exit_code = 137;
  lab.spawner.play(fails);
  CHECK_THAT(lab.run(runtime.start("c1", "p1", lab.log())).error().message,
             ContainsSubstring("runc was killed by signal 9"));
}

TEST_CASE("oci runtime: success without a usable pid file is an error in words") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  const CreateArgs args = lab.create_args();
  // One that an earlier attempt left must not be taken for this one's.
  REQUIRE(write_file(args.pid_file, "77"));
  auto created = lab.run(runtime.create(args));
  REQUIRE_FALSE(created);
  CHECK(created.error().code == Code::kInternal);
  CHECK_THAT(created.error().message,
             ContainsSubstring("runc reported success without a pid file"));
  for (const char* garbage :
       {"abc", "-3", "0", "12x", " 12", "99999999999999999999", "\n", "\xff"}) {
    CAPTURE(garbage);
    lab.spawner.play(leaves(0, args.pid_file, garbage));
    created = lab.run(runtime.create(args));
    REQUIRE_FALSE(created);
    CHECK(created.error().code == Code::kInternal);
    CHECK_THAT(created.error().message, ContainsSubstring("its pid file"));
  }
  lab.spawner.play(leaves(0, args.pid_file, std::string(1000, '1')));
  CHECK(lab.run(runtime.create(args)).error().code == Code::kInternal);
}

TEST_CASE("oci runtime: a missing runtime is named, with the remedy") {
  Lab lab;
  lab.config.binary = "kuasar-no-such-runtime";
  OciRuntime by_name(lab.spawner, lab.gate, lab.config);
  const auto created = lab.run(by_name.create(lab.create_args()));
  REQUIRE_FALSE(created);
  CHECK(created.error().code == Code::kFailedPrecondition);
  CHECK(created.error().message ==
        "OCI runtime create failed: kuasar-no-such-runtime is not in PATH: install "
        "kuasar-no-such-runtime, or name an OCI runtime that is installed (`runtime` in this "
        "daemon's configuration, BinaryName of the runtime handler in containerd's)");

  lab.config.binary = "/nowhere/crun";
  OciRuntime by_path(lab.spawner, lab.gate, lab.config);
  const auto started = lab.run(by_path.start("c1", "p1", lab.log()));
  REQUIRE_FALSE(started);
  CHECK(started.error().code == Code::kFailedPrecondition);
  CHECK_THAT(started.error().message,
             ContainsSubstring("/nowhere/crun") && ContainsSubstring("install crun"));
  CHECK(lab.spawner.spawned().empty());

  Playback refused;
  refused.refusal = Error::from_errno_value(ENOEXEC, "execute", "/x/runc");
  lab.spawner.play(std::move(refused));
  lab.config.binary = lab.dir() + "/runc";
  OciRuntime broken(lab.spawner, lab.gate, lab.config);
  const auto refusal = lab.run(broken.start("c1", "p1", lab.log()));
  REQUIRE_FALSE(refusal);
  CHECK_THAT(refusal.error().message,
             StartsWith("OCI runtime start failed: cannot run runc (`runtime` in this daemon's "
                        "configuration, or BinaryName of the runtime handler in containerd's): "
                        "execute /x/runc: "));
}

TEST_CASE("oci runtime: exec gives the process its stdio and answers its pid") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  ExecArgs args = lab.exec_args();
  args.stdin_fd = 10;
  args.stderr_fd = 12;
  lab.spawner.play(leaves(0, args.pid_file, "4343"));
  const Result<pid_t> pid = lab.run(runtime.exec(args));
  REQUIRE(pid);
  CHECK(*pid == 4343);
  const auto& [key, spec] = lab.spawner.spawned().at(0);
  CHECK(key == "c1/e1/exec/0");
  CHECK(spec.leaves_orphans);
  CHECK(spec.argv == Argv{lab.dir() + "/runc", "--root", lab.dir() + "/oci", "--log", lab.log(),
                          "--log-format", "json", "exec", "--detach", "--process",
                          lab.dir() + "/exec-e1.json", "--pid-file", lab.dir() + "/exec-e1.pid",
                          "c1"});
  REQUIRE(spec.fds.size() == 2);
  CHECK((spec.fds[0].parent_fd == 10 && spec.fds[0].child_fd == 0));
  CHECK((spec.fds[1].parent_fd == 12 && spec.fds[1].child_fd == 2));

  lab.spawner.play(
      leaves(255, "", "", lab.log(), R"({"level":"error","msg":"exec: \"x\": gone"})"));
  const Result<pid_t> failed = lab.run(runtime.exec(args));
  REQUIRE_FALSE(failed);
  CHECK(failed.error().message == "OCI runtime exec failed: runc: exec: \"x\": gone");
  // The id was free again, so the name of the run is the same.
  CHECK(lab.spawner.spawned().at(1).key == "c1/e1/exec/0");
}

TEST_CASE("oci runtime: an exec that an earlier daemon began is finished, not run again") {
  Lab lab;
  const ExecArgs args = lab.exec_args();
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  SECTION("never begun") {
    CHECK(lab.run(runtime.resume_exec(args)).error().code == Code::kNotFound);
  }
  SECTION("ended and acknowledged") {
    REQUIRE(write_file(args.pid_file, "4343"));
    CHECK(lab.run(runtime.resume_exec(args)) == 4343);
  }
  SECTION("ended, nobody has asked") {
    lab.spawner.play(leaves(0, args.pid_file, "4343"));
    REQUIRE(lab.run(lab.spawner.spawn("c1/e1/exec/0", {})));
    CHECK(lab.run(runtime.resume_exec(args)) == 4343);
    CHECK(lab.run(lab.spawner.find("c1/e1/exec/0")).error().code == Code::kNotFound);
  }
  SECTION("ended badly") {
    lab.spawner.play(leaves(1, "", "", lab.log(), R"({"level":"error","msg":"no"})"));
    REQUIRE(lab.run(lab.spawner.spawn("c1/e1/exec/0", {})));
    const auto failed = lab.run(runtime.resume_exec(args));
    REQUIRE_FALSE(failed);
    CHECK(failed.error().message == "OCI runtime exec failed: runc: no");
  }
  CHECK(lab.spawner.spawned().size() <= 1);
}

TEST_CASE("oci runtime: a checkpoint that an earlier daemon began is finished, not run again") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  CheckpointArgs args;
  args.id = "c1";
  args.log_file = lab.log();
  args.flags.image_path = args.flags.work_path = lab.dir();
  const std::string key = "c1/-/checkpoint/0";
  // Asked for before the runtime is; the recorder runs neither.
  REQUIRE(write_file(lab.dir() + "/criu", "", 0700));
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", (lab.dir() + ":" + path).c_str(), 1);
  SECTION("never begun, or acknowledged, and no image") {
    lab.spawner.play(Playback());
    CHECK(lab.run(runtime.checkpoint(args)));
    // The next one is another, which the next daemon is to find by the same name.
    lab.spawner.play(Playback());
    CHECK(lab.run(runtime.checkpoint(args)));
    REQUIRE(lab.spawner.spawned().size() == 2);
    CHECK(lab.spawner.spawned().at(1).key == key);
  }
  SECTION("acknowledged, with an image") {
    args.written = true;
    CHECK(lab.run(runtime.checkpoint(args)));
    CHECK(lab.spawner.spawned().empty());
  }
  SECTION("ended, nobody has asked") {
    args.written = GENERATE(false, true);
    lab.spawner.play(Playback());
    REQUIRE(lab.run(lab.spawner.spawn(key, {})));
    CHECK(lab.run(runtime.checkpoint(args)));
    CHECK(lab.spawner.spawned().size() == 1);
    CHECK(lab.run(lab.spawner.find(key)).error().code == Code::kNotFound);
  }
  SECTION("ended badly: its words are kept") {
    lab.spawner.play(leaves(1, "", "", lab.log(), R"({"level":"error","msg":"no"})"));
    REQUIRE(lab.run(lab.spawner.spawn(key, {})));
    const auto failed = lab.run(runtime.checkpoint(args));
    REQUIRE_FALSE(failed);
    CHECK(failed.error().message == "OCI runtime checkpoint failed: runc: no");
  }
  ::setenv("PATH", path.c_str(), 1);
}

TEST_CASE("oci runtime: a create that an earlier daemon began is killed and waited for") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  lab.run(abandon(runtime));
  os::ProcessSpec sleeper;
  sleeper.argv = {"sleep", "1000"};
  os::DirectSpawner real;
  OciRuntime over_real(real, lab.gate, lab.config);
  const auto begun = lab.run(real.spawn("c1/-/create/0", sleeper));
  REQUIRE(begun);
  CHECK(lab.run(abandon(over_real)));
  CHECK(os::pidfd_exited(begun->pidfd.get()));
  CHECK(lab.run(real.find("c1/-/create/0")).error().code == Code::kNotFound);
}

TEST_CASE("oci runtime: runs of one verb are counted until the container is forgotten") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  const auto remove_c1 = [&] { return lab.run(runtime.remove("c1", "p1", lab.log(), false)); };
  REQUIRE(remove_c1());
  REQUIRE(remove_c1());
  runtime.forget("c1");
  REQUIRE(remove_c1());
  std::vector<std::string> keys;
  for (const auto& spawned : lab.spawner.spawned()) keys.push_back(spawned.key);
  CHECK(keys == std::vector<std::string>{"c1/-/delete/0", "c1/-/delete/1", "c1/-/delete/0"});
}

TEST_CASE("oci runtime: removing what the runtime does not know is success") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  const Playback fails =
      leaves(1, "", "", lab.log(), "{\"level\":\"error\",\"msg\":\"container does not exist\"}");
  lab.spawner.play(fails);
  CHECK(lab.run(runtime.remove("c1", "p1", lab.log(), false)));

  std::filesystem::create_directory(lab.dir() + "/oci/c1");
  lab.spawner.play(fails);
  const auto kept = lab.run(runtime.remove("c1", "p1", lab.log(), false));
  REQUIRE_FALSE(kept);
  CHECK(kept.error().message == "OCI runtime delete failed: runc: container does not exist");

  // Without a place for a log it is removed all the same.
  REQUIRE(lab.run(runtime.remove("c1", "p1", lab.dir() + "/gone/runtime.log", false)));
  CHECK(lab.spawner.spawned().back().spec.argv[4] == "/dev/null");

  lab.config.binary = "kuasar-no-such-runtime";
  OciRuntime missing(lab.spawner, lab.gate, lab.config);
  CHECK(lab.run(missing.remove("c2", "p1", lab.log(), false)));
  CHECK(lab.run(missing.remove("c1", "p1", lab.log(), false)).error().code ==
        Code::kFailedPrecondition);
}

TEST_CASE("oci runtime: a hostile id never becomes an argument") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  for (const std::string& id :
       {std::string(), std::string(".."), std::string("a/b"), std::string("--root=/x"),
        std::string("-f"), std::string("a\0b", 3), std::string(10'000, 'a')}) {
    CreateArgs args = lab.create_args();
    args.id = id;
    CHECK(lab.run(runtime.create(args)).error().code == Code::kInvalidArgument);
    CHECK(lab.run(runtime.start(id, "p1", lab.log())).error().code == Code::kInvalidArgument);
    CHECK(lab.run(runtime.remove(id, "p1", lab.log(), true)).error().code ==
          Code::kInvalidArgument);
  }
  CHECK(lab.spawner.spawned().empty());
}

TEST_CASE("oci runtime: no more run at once than the gate lets through") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  Playback stays;
  stays.stays = true;
  lab.spawner.play(stays);
  std::optional<Result<>> first;
  std::optional<Result<>> second;
  spawn_root(lab.io.get_executor(), keep(runtime.start("a", "p1", lab.dir() + "/a.log"), first));
  spawn_root(lab.io.get_executor(), keep(runtime.start("b", "p1", lab.dir() + "/b.log"), second));
  lab.io.poll();
  CHECK(lab.spawner.spawned().size() == 1);
  lab.spawner.end("a/-/start/0", os::ExitStatus{});
  lab.io.run();
  CHECK(lab.spawner.spawned().size() == 2);
  REQUIRE((first && second));
  CHECK((*first && *second));
}

TEST_CASE("oci runtime: a started runtime is waited for, also when the call is cancelled") {
  Lab lab;
  OciRuntime runtime(lab.spawner, lab.gate, lab.config);
  Playback stays;
  stays.stays = true;
  lab.spawner.play(stays);
  std::optional<Result<>> out;
  TaskGroup group(lab.io.get_executor());
  group.spawn(keep(runtime.start("a", "p1", lab.log()), out));
  lab.io.poll();
  REQUIRE(lab.spawner.spawned().size() == 1);
  group.cancel();
  lab.io.poll();
  CHECK_FALSE(out);
  lab.spawner.end("a/-/start/0", os::ExitStatus{});
  lab.io.run();
  REQUIRE(out);
  CHECK(*out);
}

TEST_CASE("oci runtime: one that hangs is killed and said to have hung") {
  Lab lab;
  lab.program(
      "#!/bin/sh\necho \"{\\\"level\\\":\\\"error\\\",\\\"msg\\\":\\\"stuck\\\"}\" >&2\n"
      "echo $$ > \"$0.pid\"\nexec sleep 1000\n");
  lab.config.timeout = std::chrono::milliseconds(300);
  os::DirectSpawner spawner;
  OciRuntime runtime(spawner, lab.gate, lab.config);
  const auto started = lab.run(runtime.start("c1", "p1", lab.log()));
  REQUIRE_FALSE(started);
  CHECK(started.error().code == Code::kDeadlineExceeded);
  CHECK(started.error().message ==
        "OCI runtime start failed: runc did not end within 300 ms and was killed; its last words "
        "were: stuck");
  const std::string pid = read_file(lab.dir() + "/runc.pid").value();
  CHECK_FALSE(std::filesystem::exists("/proc/" + pid.substr(0, pid.find('\n'))));
}

TEST_CASE("oci runtime: a program that is no OCI runtime is quoted, not trusted") {
  Lab lab;
  os::DirectSpawner spawner;
  OciRuntime runtime(spawner, lab.gate, lab.config);
  lab.program("#!/bin/sh\nprintf 'usage: \\033[1mthing\\377 [--help]\\n\\n' >&2\nexit 64\n");
  CHECK(lab.run(runtime.start("c1", "p1", lab.log())).error().message ==
        "OCI runtime start failed: runc ended with exit code 64; its last words were: usage:  "
        "[1mthing? [--help]");
  lab.program("#!/bin/sh\nexit 0\n");
  CHECK(lab.run(runtime.create(lab.create_args())).error().code == Code::kInternal);
  // 1 MiB without a newline, and a log that is a link to somewhere else.
  lab.program("#!/bin/sh\nhead -c 1048576 /dev/zero >&2\nexit 3\n");
  CHECK_THAT(lab.run(runtime.start("c1", "p1", lab.log())).error().message,
             ContainsSubstring("exit code 3 and wrote nothing"));
  std::filesystem::remove(lab.log());
  std::filesystem::create_symlink("/etc/hostname", lab.log());
  CHECK_FALSE(lab.run(runtime.start("c1", "p1", lab.log())));
  CHECK_FALSE(lab.run(runtime.create(lab.create_args())));
}

TEST_CASE("oci log: criu's first error is the cause") {
  CHECK(first_criu_error("(00.001) Running on x\n"
                         "(00.002) Error (criu/kerndat.c:1047): no memory tracking\n"
                         "(00.003) Error (criu/cr-dump.c:1781): Dumping FAILED.\n") ==
        "no memory tracking");
  CHECK(first_criu_error("(00.002) Error (half a line").starts_with("half"));
  CHECK(first_criu_error("all is well\n").empty());
}

TEST_CASE("oci runtime log: the last error message is found in any log") {
  CHECK(last_error_message("").empty());
  CHECK(last_error_message("\n\n\n").empty());
  CHECK(last_error_message("plain text\n{}\n[]\n{\"level\":\"error\"}\n{\"msg\":\"x\"}\n").empty());
  CHECK(last_error_message("{\"level\":\"error\",\"msg\":7}\n{\"level\":2,\"msg\":\"x\"}").empty());
  CHECK(last_error_message("{\"level\":\"info\",\"msg\":\"x\"}").empty());
  CHECK(last_error_message("{\"level\":\"fatal\",\"msg\":\"x\"}\n\n") == "x");
  // As crun 1.28 writes them.
  const std::string crun =
      "{\n  \"msg\": \"no `\\/a`\",\n  \"level\": \"error\",\n  \"time\": \"t\"\n}\n";
  const std::string warning = "{\n  \"msg\": \"w\",\n  \"level\": \"warning\"\n}\n";
  CHECK(last_error_message(crun) == "no `/a`");
  CHECK(last_error_message("noise\n" + crun + warning + "more noise\n") == "no `/a`");
  CHECK(last_error_message(warning + crun) == "no `/a`");
  CHECK(last_error_message(warning).empty());
  CHECK(last_error_message("}\n}\n").empty());
  CHECK(last_error_message("{\n}\n}\n").empty());
  CHECK(last_error_message("{\"msg\":\"a\\nb\\u0007\",\"level\":\"error\"}") == "a b");
  CHECK(last_error_message(
            "{\"level\":\"error\",\"msg\":\"1\"}\n{\"level\":\"error\",\"msg\":\"\"}") == "1");
  CHECK(last_error_message(std::string(1000, '[') + "\n").empty());
  // Cut at a character, not inside one.
  std::string long_text;
  for (int i = 0; i < 3000; ++i) long_text += "\xC3\xA9";
  const std::string cut =
      last_error_message("{\"level\":\"error\",\"msg\":\"a" + long_text + "\"}");
  CHECK(cut.size() == 4095 + 3);
  CHECK(cut.ends_with("\xA9..."));
}

TEST_CASE("oci runtime log: only the end of a large log is read") {
  Lab lab;
  const std::string error = "{\"level\":\"error\",\"msg\":\"at the end\"}\n";
  REQUIRE(write_file(lab.log(), std::string(1U << 20, 'x') + "\n" + error));
  const std::string tail = read_log_tail(lab.log());
  CHECK(tail.size() == 64 * 1024);
  CHECK(last_error_message(tail) == "at the end");
  CHECK(last_words(tail) == "{\"level\":\"error\",\"msg\":\"at the end\"}");
  CHECK(read_log_tail(lab.dir() + "/absent").empty());
  CHECK(read_log_tail(lab.dir()).empty());
  CHECK(read_log_tail("/dev/zero").empty());
}

}  // namespace kuasar::oci
