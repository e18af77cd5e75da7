#include "support/census_fixture.h"

#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

namespace kuasar::test {
namespace {

long check(long result, const std::string& what) {
  if (result < 0) {
    throw std::system_error(errno, std::generic_category(), what);
  }
  return result;
}

// What the stand-in for the daemon has leaked; only used in the forked child.
struct Leaks {
  std::vector<pid_t> children;
  std::vector<int> fds;
  pthread_t thread{};
  int thread_pipe[2] = {-1, -1};
};

void* read_one_byte(void* argument) {
  const int* ends = static_cast<const int*>(argument);
  const auto id = static_cast<pid_t>(::syscall(SYS_gettid));
  char byte = 0;
  if (::write(ends[1], &id, sizeof id) != static_cast<ssize_t>(sizeof id) ||
      ::read(ends[0], &byte, 1) < 0) {
    ::_exit(3);
  }
  return nullptr;
}

[[noreturn]] void sleep_until_killed() {
  for (;;) {
    ::pause();
  }
}

pid_t fork_sleeper() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    sleep_until_killed();
  }
  return pid;
}

// Forks twice, so that the second child is inherited by init or the nearest subreaper.
pid_t fork_orphan(bool own_namespace, const char* dir) {
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) {
    return -1;
  }
  const pid_t middle = ::fork();
  if (middle == 0) {
    if (own_namespace && ::unshare(CLONE_NEWUTS) != 0) {
      ::_exit(1);
    }
    if (!own_namespace && ::chdir(dir) != 0) {
      ::_exit(1);
    }
    const pid_t orphan = fork_sleeper();
    ::_exit(::write(report[1], &orphan, sizeof orphan) == sizeof orphan ? 0 : 1);
  }
  int status = 0;
  ::waitpid(middle, &status, 0);
  pid_t orphan = -1;
  if (status != 0 || ::read(report[0], &orphan, sizeof orphan) != sizeof orphan) {
    orphan = -1;
  }
  ::close(report[0]);
  ::close(report[1]);
  return orphan;
}

pid_t leak_thread(Leaks& leaks) {
  int answer[2];
  if (::pipe(leaks.thread_pipe) != 0 || ::pipe(answer) != 0) {
    return -1;
  }
  int ends[2] = {leaks.thread_pipe[0], answer[1]};
  pid_t id = -1;
  if (::pthread_create(&leaks.thread, nullptr, read_one_byte, ends) != 0 ||
      ::read(answer[0], &id, sizeof id) != sizeof id) {
    return -1;
  }
  ::close(answer[0]);
  ::close(answer[1]);
  return id;
}

pid_t make_good(Leaks& leaks) {
  for (const pid_t child : leaks.children) {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  leaks.children.clear();
  if (leaks.thread_pipe[1] >= 0) {
    ::close(leaks.thread_pipe[1]);
    ::pthread_join(leaks.thread, nullptr);
    ::close(leaks.thread_pipe[0]);
    leaks.thread_pipe[0] = leaks.thread_pipe[1] = -1;
  }
  for (const int fd : leaks.fds) {
    ::close(fd);
  }
  leaks.fds.clear();
  return 0;
}

pid_t obey(char letter, Leaks& leaks, const char* dir) {
  int ends[2] = {-1, -1};
  switch (static_cast<LeakyDaemon::Leak>(letter)) {
    case LeakyDaemon::Leak::kChild:
      leaks.children.push_back(fork_sleeper());
      return leaks.children.back();
    case LeakyDaemon::Leak::kZombie: {
      const pid_t child = ::fork();
      if (child == 0) {
        ::_exit(0);
      }
      siginfo_t info{};
      ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);
      leaks.children.push_back(child);
      return child;
    }
    case LeakyDaemon::Leak::kPipe:
      if (::pipe2(ends, O_CLOEXEC) != 0) {
        return -1;
      }
      break;
    case LeakyDaemon::Leak::kSocketPair:
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        return -1;
      }
      break;
    case LeakyDaemon::Leak::kNamespaceFd:
      ends[0] = ::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
      leaks.fds.push_back(ends[0]);
      return ends[0] < 0 ? -1 : 0;
    case LeakyDaemon::Leak::kThread: return leak_thread(leaks);
    case LeakyDaemon::Leak::kOrphanInNamespace: return fork_orphan(true, dir);
    case LeakyDaemon::Leak::kOrphanInDir: return fork_orphan(false, dir);
    default: return make_good(leaks);
  }
  leaks.fds.insert(leaks.fds.end(), {ends[0], ends[1]});
  return 0;
}

[[noreturn]] void serve(int commands, int answers, const char* dir) {
  Leaks leaks;
  char letter = 0;
  while (::read(commands, &letter, 1) == 1) {
    const pid_t answer = obey(letter, leaks, dir);
    if (::write(answers, &answer, sizeof answer) != sizeof answer) {
      break;
    }
  }
  make_good(leaks);
  ::_exit(0);
}

// One rtnetlink request with nested attributes, the least that makes or removes a link.
class LinkRequest {
 public:
  LinkRequest(std::uint16_t type, std::uint16_t flags) {
    header()->nlmsg_len = NLMSG_LENGTH(sizeof(ifinfomsg));
    header()->nlmsg_type = type;
    header()->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  }

  rtattr* add(std::uint16_t type, const void* data, std::size_t size) {
    auto* attribute = reinterpret_cast<rtattr*>(buffer_ + NLMSG_ALIGN(header()->nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = static_cast<std::uint16_t>(RTA_LENGTH(size));
    if (size > 0) {
      std::memcpy(RTA_DATA(attribute), data, size);
    }
    header()->nlmsg_len = static_cast<std::uint32_t>(NLMSG_ALIGN(header()->nlmsg_len) +
                                                     RTA_ALIGN(attribute->rta_len));
    return attribute;
  }

  // The attribute now ends where the message ends.
  void close(rtattr* attribute) {
    attribute->rta_len = static_cast<std::uint16_t>(buffer_ + header()->nlmsg_len -
                                                    reinterpret_cast<unsigned char*>(attribute));
  }

  // ifinfomsg of a veth's peer stands inside the attribute, without an rtattr of its own.
  void append_interface_header() { header()->nlmsg_len += NLMSG_ALIGN(sizeof(ifinfomsg)); }

  void send() {
    const int fd = static_cast<int>(check(
        ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), "socket(NETLINK_ROUTE)"));
    alignas(nlmsghdr) unsigned char answer[4096];
    const ssize_t sent = ::send(fd, buffer_, header()->nlmsg_len, 0);
    const ssize_t got = sent < 0 ? -1 : ::recv(fd, answer, sizeof answer, 0);
    const int saved = errno;
    ::close(fd);
    errno = saved;
    check(got, "rtnetlink");
    const auto* error =
        static_cast<const nlmsgerr*>(NLMSG_DATA(reinterpret_cast<nlmsghdr*>(answer)));
    errno = -error->error;
    check(error->error, "rtnetlink link request");
  }

 private:
  nlmsghdr* header() { return reinterpret_cast<nlmsghdr*>(buffer_); }

  alignas(nlmsghdr) unsigned char buffer_[1024] = {};
};

void remove_link(const std::string& name) {
  LinkRequest request(RTM_DELLINK, 0);
  request.add(IFLA_IFNAME, name.c_str(), name.size() + 1);
  request.send();
}

}  // namespace

void Planted::remove() {
  if (undo_) {
    std::exchange(undo_, nullptr)();
  }
}

LeakyDaemon::LeakyDaemon(const std::filesystem::path& dir) {
  int commands[2];
  int answers[2];
  check(::pipe2(commands, O_CLOEXEC), "pipe2");
  check(::pipe2(answers, O_CLOEXEC), "pipe2");
  pid_ = static_cast<pid_t>(check(::fork(), "fork"));
  if (pid_ == 0) {
    ::close(commands[1]);
    ::close(answers[0]);
    serve(commands[0], answers[1], dir.c_str());
  }
  ::close(commands[0]);
  ::close(answers[1]);
  commands_ = commands[1];
  answers_ = answers[0];
  // Its answer says that it has closed what it inherited: a census may be taken from here on.
  make_good();
}

LeakyDaemon::~LeakyDaemon() {
  ::close(commands_);
  ::close(answers_);
  ::waitpid(pid_, nullptr, 0);
}

pid_t LeakyDaemon::command(char letter) {
  pid_t answer = -1;
  check(::write(commands_, &letter, 1), "write to the leaky daemon");
  check(::read(answers_, &answer, sizeof answer), "read from the leaky daemon");
  return answer;
}

pid_t LeakyDaemon::leak(Leak leak) {
  const pid_t made = command(static_cast<char>(leak));
  if (made < 0) {
    throw std::runtime_error("the leaky daemon could not leak");
  }
  return made;
}

void LeakyDaemon::make_good() {
  command('x');
}

ScratchDir::ScratchDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kuasar-census-XXXXXX").native();
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp");
  }
  path_ = pattern;
}

ScratchDir::~ScratchDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Planted plant_mount(const std::filesystem::path& dir) {
  std::filesystem::create_directory(dir);
  check(::mount("tmpfs", dir.c_str(), "tmpfs", 0, "size=4k"), "mount " + dir.native());
  return {dir.native() + " on tmpfs", [dir] {
            ::umount2(dir.c_str(), MNT_DETACH);
            ::rmdir(dir.c_str());
          }};
}

Planted plant_cgroup(const std::filesystem::path& hierarchy) {
  const std::string name = "kuasar-census-" + std::to_string(::getpid());
  const std::filesystem::path dir = hierarchy / name;
  check(::mkdir(dir.c_str(), 0755), "mkdir " + dir.native());
  return {":/" + name, [dir] { ::rmdir(dir.c_str()); }};
}

Planted plant_file(const std::filesystem::path& file) {
  std::ofstream(file) << "left over";
  return {file.native(), [file] { ::unlink(file.c_str()); }};
}

Planted plant_fifo(const std::filesystem::path& file) {
  check(::mkfifo(file.c_str(), 0600), "mkfifo " + file.native());
  return {file.native(), [file] { ::unlink(file.c_str()); }};
}

Planted plant_namespace_pin(const std::filesystem::path& file) {
  std::ofstream(file).close();
  check(::mount("/proc/self/ns/uts", file.c_str(), nullptr, MS_BIND, nullptr),
        "pin " + file.native());
  return {file.native() + " -> uts:[", [file] {
            ::umount2(file.c_str(), MNT_DETACH);
            ::unlink(file.c_str());
          }};
}

Planted plant_unix_socket(const std::filesystem::path& file) {
  const int fd =
      static_cast<int>(check(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, file.c_str(), sizeof address.sun_path - 1);
  check(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), "bind");
  check(::listen(fd, 1), "listen");
  return {file.native() + " listening", [fd, file] {
            ::close(fd);
            ::unlink(file.c_str());
          }};
}

Planted plant_veth() {
  const std::string name = "kc" + std::to_string(::getpid());
  const std::string peer = name + "p";
  LinkRequest request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  request.add(IFLA_IFNAME, name.c_str(), name.size() + 1);
  rtattr* info = request.add(IFLA_LINKINFO, nullptr, 0);
  request.add(IFLA_INFO_KIND, "veth", 5);
  rtattr* data = request.add(IFLA_INFO_DATA, nullptr, 0);
  rtattr* other_end = request.add(VETH_INFO_PEER, nullptr, 0);
  request.append_interface_header();
  request.add(IFLA_IFNAME, peer.c_str(), peer.size() + 1);
  request.close(other_end);
  request.close(data);
  request.close(info);
  request.send();
  return {name, [name] { remove_link(name); }};
}

std::vector<std::filesystem::path> cgroup_hierarchies() {
  std::vector<std::filesystem::path> points;
  std::ifstream mounts("/proc/self/mounts");
  std::string source;
  std::string point;
  std::string type;
  std::string rest;
  while (mounts >> source >> point >> type && std::getline(mounts, rest)) {
    if (type == "cgroup" || type == "cgroup2") {
      points.emplace_back(point);
    }
  }
  return points;
}

}  // namespace kuasar::test
