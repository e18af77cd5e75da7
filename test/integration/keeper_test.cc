#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "support/keeper_fixture.h"
#include "support/process.h"

namespace kuasar::keeper {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::dial;
using test::KeeperFixture;
using test::listener;
using test::pss_of;
using test::shell_spec;
using test::text_fd;
using test::text_of;
using test::wait_until;

bool kernel_tells_exit() {
  utsname name{};
  ::uname(&name);
  int major = 0;
  int minor = 0;
  std::sscanf(name.release, "%d.%d", &major, &minor);
  return major > 6 || (major == 6 && minor >= 15);
}

TEST_CASE_METHOD(KeeperFixture,
                 "keeper: descriptors are held, replaced, found and dropped by name") {
  connect();
  REQUIRE(client->hold("pod/a/stdout", text_fd("one").get()));
  REQUIRE(client->hold("pod/b/stdout", text_fd("two").get()));
  REQUIRE(client->hold("pod/a/stdout", text_fd("three").get()));
  CHECK(text_of(client->get("pod/a/stdout")) == "three");
  CHECK(client->get("pod/c").error().code == Code::kNotFound);
  client->drop("pod/c");
  CHECK(client->hold("with blank", 0).error().code == Code::kInvalidArgument);
  CHECK(client->hold(std::string(320, 'x'), 0).error().code == Code::kInvalidArgument);
  REQUIRE(client->hold(std::string(319, 'x'), text_fd("long").get()));
  client->drop("pod/b/stdout");

  connect();
  CHECK(client->held("pod/") == std::vector<std::string>{"pod/a/stdout"});
  CHECK(text_of(client->get("pod/a/stdout")) == "three");
  CHECK(text_of(client->get(std::string(319, 'x'))) == "long");
}

TEST_CASE_METHOD(KeeperFixture, "keeper: connections are accepted and held without a daemon, too") {
  const std::string path = dir / "task.sock";
  connect();
  REQUIRE(client->accept("task", listener(path).get()));
  std::map<std::string, UniqueFd> accepted;
  const auto note = [&](std::string name, UniqueFd fd) { accepted[name] = std::move(fd); };
  client->on_accept(note);
  TaskGroup group(io.executor());
  group.spawn(client->run());
  const UniqueFd first = dial(path);
  REQUIRE(::send(first.get(), "first", 5, 0) == 5);
  REQUIRE(wait_until(
      [&] {
        io.settle();
        return accepted.size() == 1;
      },
      seconds(5)));
  const std::string first_name = accepted.begin()->first;
  CHECK(first_name == "task/1");
  group.cancel();
  io.run(group.join());
  client.reset();
  accepted.clear();

  const UniqueFd second = dial(path);
  REQUIRE(::send(second.get(), "second", 6, 0) == 6);
  connect();
  // Accepted before the list or just after it: it is told in either case, and once.
  client->on_accept(note);
  TaskGroup again(io.executor());
  again.spawn(client->run());
  REQUIRE(wait_until(
      [&] {
        io.settle();
        return client->held("task/").size() == 2;
      },
      seconds(5)));
  CHECK(client->held("listen/") == std::vector<std::string>{"listen/task"});
  char text[16];
  Result<UniqueFd> held = client->get(first_name);
  REQUIRE(held);
  CHECK(::recv(held->get(), text, sizeof text, 0) == 5);
  held = client->get("task/2");
  REQUIRE(held);
  CHECK(::recv(held->get(), text, sizeof text, 0) == 6);
  CHECK(accepted.size() <= 1);
  // Dropped by both: the peer sees the end.
  client->drop("task/2");
  held->reset();
  accepted.clear();
  CHECK(::recv(second.get(), text, sizeof text, 0) == 0);
  again.cancel();
  io.run(again.join());
}

TEST_CASE_METHOD(KeeperFixture, "keeper: exit status and time survive the daemon") {
  connect();
  {
    KeeperSpawner spawner(*client);
    const auto process = io.run(spawner.spawn("c/init/create/1", shell_spec("exit 7")));
    REQUIRE(process);
    REQUIRE(wait_until([&] { return os::pidfd_exited(process->pidfd.get()); }, seconds(5)));
    REQUIRE(io.run(spawner.spawn("c/init/kept", shell_spec("exec sleep 100"))));
  }
  const auto known = std::chrono::system_clock::now();
  connect();
  KeeperSpawner spawner(*client);
  const auto found = io.run(spawner.find("c/init/create/1"));
  REQUIRE(found);
  const os::ExitStatus status = io.run(spawner.wait(*found));
  CHECK(status.code == 7);
  CHECK(status.known);
  CHECK(status.at <= known);
  CHECK(status.at > known - seconds(10));
  // Not run again, and a pid that nobody else can have.
  const auto again = io.run(spawner.spawn("c/init/create/1", shell_spec("exit 8")));
  REQUIRE(again);
  CHECK(again->pid == found->pid);
  spawner.acknowledge(*found);
  CHECK(client->children().size() == 1);
  CHECK(client->quit().error().message.find("1 processes are still named") != std::string::npos);
  io.settle();
  connect();
  CHECK(client->children().size() == 1);
}

TEST_CASE_METHOD(KeeperFixture, "keeper: killed, it is replaced and handed everything") {
  const std::string path = dir / "task.sock";
  connect();
  const pid_t old = client->keeper_pid();
  KeeperSpawner spawner(*client);
  REQUIRE(client->hold("pod/a", text_fd("held").get()));
  REQUIRE(client->accept("task", listener(path).get()));
  UniqueFd go(::eventfd(0, EFD_CLOEXEC));
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  os::ProcessSpec spec = shell_spec("read line; exit 9");
  spec.fds = {{reader.get(), 0}};
  const auto process = io.run(spawner.spawn("a/1", spec));
  REQUIRE(process);

  kill_keeper();
  // Whatever call comes first mends it.
  REQUIRE(client->hold("pod/b", text_fd("later").get()));
  CHECK(client->keeper_pid() != old);
  const UniqueFd connection = dial(path);
  REQUIRE(::write(writer.get(), "\n", 1) == 1);
  const os::ExitStatus status = io.run(spawner.wait(*process));
  if (kernel_tells_exit()) {
    CHECK(status.code == 9);
    CHECK(status.known);
  } else {
    CHECK(status.code == 255);
  }
  spawner.acknowledge(*process);
  CHECK(client->children().empty());
  connect();
  CHECK(text_of(client->get("pod/a")) == "held");
  CHECK(text_of(client->get("pod/b")) == "later");
  CHECK(client->held("listen/").size() == 1);
}

TEST_CASE_METHOD(KeeperFixture, "keeper: run() notices its death and goes on") {
  const std::string path = dir / "task.sock";
  connect();
  REQUIRE(client->accept("task", listener(path).get()));
  std::vector<std::string> accepted;
  const auto note = [&](std::string name, UniqueFd) { accepted.push_back(std::move(name)); };
  client->on_accept(note);
  TaskGroup group(io.executor());
  group.spawn(client->run());
  const UniqueFd before = dial(path);
  REQUIRE(wait_until(
      [&] {
        io.settle();
        return accepted.size() == 1;
      },
      seconds(5)));
  const pid_t old = client->keeper_pid();
  kill_keeper();
  REQUIRE(wait_until(
      [&] {
        io.settle();
        return client->keeper_pid() != old;
      },
      seconds(5)));
  const UniqueFd after = dial(path);
  REQUIRE(wait_until(
      [&] {
        io.settle();
        return accepted.size() == 2;
      },
      seconds(5)));
  // Numbers go on, so that no name means two connections.
  CHECK(accepted == std::vector<std::string>{"task/1", "task/2"});
  group.cancel();
  io.run(group.join());
}

TEST_CASE_METHOD(KeeperFixture,
                 "keeper: an upgrade in place keeps pid, children, zombies and all") {
  const std::string path = dir / "task.sock";
  const std::string copy = dir / "kuasar-keeper-new";
  std::filesystem::copy_file(test::built_program("kuasar-keeper"), copy);
  connect();
  const pid_t pid = client->keeper_pid();
  KeeperSpawner spawner(*client);
  REQUIRE(client->accept("task", listener(path).get()));
  for (int i = 0; i < 100; ++i) {
    REQUIRE(client->hold("pod/" + std::to_string(i), text_fd(std::to_string(i)).get()));
  }
  const auto zombie = io.run(spawner.spawn("z", shell_spec("exit 3")));
  REQUIRE(zombie);
  const auto runs = io.run(spawner.spawn("r", shell_spec("exec sleep 100")));
  REQUIRE(runs);
  REQUIRE(wait_until([&] { return os::pidfd_exited(zombie->pidfd.get()); }, seconds(5)));
  // Connections come in all the while.
  std::atomic<bool> stop{false};
  std::vector<UniqueFd> dialled;
  std::thread load([&] {
    while (!stop) {
      UniqueFd fd = dial(path);
      if (fd) dialled.push_back(std::move(fd));
      std::this_thread::yield();
      if (dialled.size() >= 200) break;
    }
  });
  for (int i = 0; i < 5; ++i) {
    const Result<> upgraded = client->upgrade(copy);
    if (!upgraded) UNSCOPED_INFO(upgraded.error().message);
    CHECK(upgraded);
  }
  stop = true;
  load.join();
  CHECK(client->keeper_pid() == pid);
  CHECK(std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/exe") == copy);
  CHECK(client->hold("after", text_fd("after").get()));
  CHECK(io.run(spawner.wait(*zombie)).code == 3);
  REQUIRE(os::pidfd_signal(runs->pidfd.get(), SIGKILL));
  CHECK(io.run(spawner.wait(*runs)).code == 137);
  connect();
  CHECK(client->keeper_pid() == pid);
  CHECK(text_of(client->get("pod/99")) == "99");
  CHECK(client->children().size() == 2);
  CHECK(wait_until(
      [&] {
        connect();
        return client->held("task/").size() == dialled.size();
      },
      seconds(5)));
}

TEST_CASE_METHOD(KeeperFixture,
                 "keeper: a program that cannot take over leaves the old one serving") {
  connect();
  const pid_t pid = client->keeper_pid();
  REQUIRE(client->hold("pod/a", text_fd("held").get()));
  for (const std::string program : {"/bin/false", "/bin/true", "/etc/passwd"}) {
    const Result<> upgraded = client->upgrade(program);
    REQUIRE_FALSE(upgraded);
    CHECK(upgraded.error().code == Code::kFailedPrecondition);
    CHECK(upgraded.error().message.find(program) != std::string::npos);
  }
  CHECK(client->upgrade("/bin/false").error().message.find("ended with 1") != std::string::npos);
  CHECK(client->upgrade_if_other("/bin/false"));
  CHECK(client->keeper_pid() == pid);
  connect();
  CHECK(client->keeper_pid() == pid);
  CHECK(text_of(client->get("pod/a")) == "held");
  CHECK(test::children_of(pid) == 0);
}

TEST_CASE_METHOD(KeeperFixture, "keeper: a spawn whose answer was lost is not done twice") {
  connect();
  KeeperSpawner spawner(*client);
  REQUIRE(io.run(spawner.spawn("first", shell_spec("exec sleep 100"))));
  // The keeper is stopped, then killed while a request lies in its socket: as often as not it has
  // been served by then. Either way there is one process in the end.
  for (int round = 0; round < 20; ++round) {
    const std::string key = "round/" + std::to_string(round);
    const pid_t victim = client->keeper_pid();
    std::thread killer([&] {
      if (round % 2 == 1) ::usleep(static_cast<useconds_t>(100 * round));
      ::kill(victim, SIGKILL);
    });
    const auto process = io.run(
        spawner.spawn(key, shell_spec("echo >>" + (dir / "runs").string() + "; exec sleep 100")));
    killer.join();
    if (!process) FAIL(process.error().message);
    CHECK_FALSE(os::pidfd_exited(process->pidfd.get()));
    const auto runs = [&] {
      const std::string text = test::read_text(dir / "runs");
      return std::count(text.begin(), text.end(), '\n');
    };
    CHECK(wait_until([&] { return runs() == round + 1; }, seconds(5)));
    CHECK(client->hold("mended", text_fd("x").get()));
  }
}

TEST_CASE_METHOD(KeeperFixture, "keeper: strays are reaped, what is about to be adopted is not") {
  connect();
  KeeperSpawner spawner(*client);
  os::ProcessSpec runtime = shell_spec("sh -c 'exit 5' & exit 0");
  runtime.leaves_orphans = true;
  const auto process = io.run(spawner.spawn("c/create", runtime));
  REQUIRE(process);
  CHECK(io.run(spawner.wait(*process)).code == 0);
  // The runtime is a zombie and its orphan will be one.
  const pid_t keeper = client->keeper_pid();
  TaskGroup group(io.executor());
  group.spawn(spawner.reap_strays());
  const auto rounds = std::chrono::steady_clock::now() + milliseconds(2500);
  CHECK_FALSE(wait_until(
      [&] {
        io.settle();
        return test::children_of(keeper) < 2 && std::chrono::steady_clock::now() > rounds;
      },
      milliseconds(3000)));
  spawner.acknowledge(*process);
  CHECK(wait_until(
      [&] {
        io.settle();
        return test::children_of(keeper) == 0;
      },
      seconds(6)));
  group.cancel();
  io.run(group.join());
}

TEST_CASE_METHOD(KeeperFixture,
                 "D4 keeper: a flood of orphans is reaped at once, without the daemon") {
  connect();
  KeeperSpawner spawner(*client);
  // As a container in the host's PID namespace does.
  const auto flood = io.run(spawner.spawn(
      "flood",
      shell_spec("i=0; while [ $i -lt 3000 ]; do (true &); i=$((i+1)); done; exec sleep 100")));
  REQUIRE(flood);
  // A runtime's orphan that nobody has adopted yet, and the runtime's own end, stay meanwhile.
  os::ProcessSpec runtime = shell_spec("sh -c 'exit 5' & exit 0");
  runtime.leaves_orphans = true;
  const auto process = io.run(spawner.spawn("c/create", runtime));
  REQUIRE(process);
  CHECK(io.run(spawner.wait(*process)).code == 0);
  const pid_t keeper = client->keeper_pid();
  std::size_t most = 0;
  const auto is_asleep = [&] {
    most = std::max(most, test::children_of(keeper));
    return read_file("/proc/" + std::to_string(flood->pid) + "/cmdline")
        .value_or("")
        .starts_with("sleep");
  };
  CHECK(wait_until(is_asleep, seconds(30)));
  CHECK(most < 300);
  CHECK(test::children_of(keeper) >= 3);
  spawner.acknowledge(*process);
  CHECK(wait_until([&] { return test::children_of(keeper) == 1; }, seconds(5)));
}

TEST_CASE_METHOD(KeeperFixture, "keeper: keys that nobody asks for are forgotten") {
  connect();
  {
    KeeperSpawner spawner(*client);
    REQUIRE(io.run(spawner.spawn("ended", shell_spec("exit 0"))));
    REQUIRE(io.run(spawner.spawn("runs", shell_spec("exec sleep 100"))));
    REQUIRE(io.run(spawner.spawn("asked", shell_spec("exit 0"))));
    os::ProcessSpec runtime = shell_spec("exec sleep 0.2");
    runtime.leaves_orphans = true;
    REQUIRE(io.run(spawner.spawn("runtime", runtime)));
    for (const char* key : {"ended", "asked"}) {
      const auto process = io.run(spawner.find(key));
      io.run(spawner.wait(*process));
    }
  }
  connect();
  KeeperSpawner spawner(*client);
  REQUIRE(io.run(spawner.find("asked")));
  io.run(spawner.forget_unclaimed());
  std::vector<std::string> left;
  for (const auto& [key, child] : client->children()) left.push_back(key);
  CHECK(left == std::vector<std::string>{"asked", "runs"});
}

TEST_CASE_METHOD(KeeperFixture, "keeper: 2000 descriptors and 500 children take less than a MiB") {
#ifdef __SANITIZE_ADDRESS__
  SKIP("the sanitizer's own memory is many times that");
#endif
  connect();
  KeeperSpawner spawner(*client);
  const long empty = pss_of(client->keeper_pid());
  const UniqueFd fd = text_fd("x");
  const std::string id(64, 'a');
  const auto now = [] { return std::chrono::steady_clock::now(); };
  auto start = now();
  for (int i = 0; i < 2000; ++i) {
    REQUIRE(client->hold(id + "/" + std::to_string(i), fd.get()));
  }
  const auto hold = now() - start;
  os::ProcessSpec spec;
  spec.argv = {"/bin/true"};
  start = now();
  for (int i = 0; i < 500; ++i) {
    REQUIRE(client->spawn(id + "/" + std::to_string(i), spec));
  }
  const auto spawn = now() - start;
  const long full = pss_of(client->keeper_pid());
  for (int i = 0; i < 10000; ++i) {
    REQUIRE(client->hold("again/" + std::to_string(i), fd.get()));
    client->drop("again/" + std::to_string(i));
  }
  const long later = pss_of(client->keeper_pid());
  const auto each = [](auto sum, int count) {
    return std::chrono::duration_cast<std::chrono::microseconds>(sum).count() / count;
  };
  WARN("keeper: PSS " << empty << " kB empty, " << full << " kB full; hold " << each(hold, 2000)
                      << " us, spawn of /bin/true " << each(spawn, 500) << " us");
  CHECK(full > 0);
  CHECK(full <= 1024);
  CHECK(later <= full + 8);
  for (const auto& [key, child] : client->children()) {
    REQUIRE(wait_until([&, p = child.pidfd.get()] { return os::pidfd_exited(p); }, seconds(5)));
  }
  for (int i = 0; i < 500; ++i) {
    const std::string key = id + "/" + std::to_string(i);
    client->acknowledge(key, client->children().at(key).pid);
  }
  CHECK(client->quit());
}

}  // namespace
}  // namespace kuasar::keeper
