// kuasar-wasm-worker: a zygote. It loads a WebAssembly engine and then, as often as it is asked,
// makes a child that has the engine in memory already. It reads nothing that comes from a pod or an
// image: that is the child's, which confines itself first (child.cc). The child's parent is ours,
// the keeper, so that it outlives both the daemon and this process, which ends with either.
//
//   kuasar-wasm-worker ENGINE LIBRARY [aot]     descriptor 3: see plan.h
//
// With "aot" its first message has the stamp of its native code (artifact.h) behind the "R".

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "worker/artifact.h"
#include "worker/child.h"
#include "worker/confine.h"
#include "worker/digest.h"

namespace {

using namespace kuasar::wasm;

int own_pid_namespace = -1;

struct Received {
  Request request;
  std::vector<int> fds;
};

// False at the end of the connection.
bool receive(Received& received) {
  iovec bytes{&received.request, sizeof received.request};
  alignas(cmsghdr) static char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t size;
  while ((size = ::recvmsg(kZygoteSocket, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  if (size != sizeof received.request || (message.msg_flags & MSG_CTRUNC) != 0) return false;
  received.fds.clear();
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    received.fds.resize(count);
    std::memcpy(received.fds.data(), CMSG_DATA(header), count * sizeof(int));
  }
  return received.fds.size() > kControlFd;
}

// The child inherits our own exit signal; clone3(2) takes none together with CLONE_PARENT.
long clone_child(const Request& request) {
  clone_args args{};
  args.flags = CLONE_PARENT;
  if (request.new_pid != 0) args.flags |= CLONE_NEWPID;
  if (request.new_mounts != 0) args.flags |= CLONE_NEWNS;
  return ::syscall(SYS_clone3, &args, sizeof args);
}

// In the child: 0.
long make_child(const Received& received) {
  const int index = received.request.pid_namespace;
  if (index == kNone) return clone_child(received.request);
  // For the next child only.
  if (::setns(received.fds[static_cast<std::size_t>(index)], CLONE_NEWPID) != 0) return -1;
  const long pid = clone_child(received.request);
  if (pid == 0) return 0;
  const int err = errno;
  if (::setns(own_pid_namespace, CLONE_NEWPID) != 0) ::_exit(1);
  errno = err;
  return pid;
}

// Fields 48 to 51 of /proc/self/stat (proc(5)). argv itself begins later where a dynamic loader
// was executed to run this program.
CommandLine find_command_line() {
  char text[1024];
  const int fd = ::open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  const ssize_t size = fd < 0 ? -1 : ::read(fd, text, sizeof text - 1);
  ::close(fd);
  if (size <= 0) return {};
  text[size] = '\0';
  const char* at = std::strrchr(text, ')');
  for (int field = 2; field < 48 && at != nullptr; ++field) at = std::strchr(at + 1, ' ');
  if (at == nullptr) return {};
  char* fields[4] = {};
  for (char*& field : fields) {
    char* after = nullptr;
    field = reinterpret_cast<char*>(std::strtoul(at, &after, 10));
    at = after;
  }
  if (fields[0] == nullptr || fields[1] <= fields[0] || fields[3] < fields[2]) return {};
  return {fields[0], fields[1], fields[2], fields[3]};
}

[[noreturn]] void serve(const Inheritance& inheritance) {
  Received received;
  while (receive(received)) {
    const long pid = make_child(received);
    if (pid == 0) {
      ::close(kZygoteSocket);
      run_child(inheritance, received.fds);
    }
    const Answer answer{received.request.sequence,
                        static_cast<std::int32_t>(pid < 0 ? -errno : pid)};
    for (const int fd : received.fds) ::close(fd);
    if (::send(kZygoteSocket, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) break;
  }
  ::_exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  const bool aot = argc == 4 && std::string_view(argv[3]) == "aot";
  if (argc != 3 && !aot) {
    std::fputs("kuasar-wasm-worker is started by wasm-sandboxer and not by hand\n", stderr);
    return 64;
  }
  // A parent that died before this is seen by nobody's signal: the daemon is gone then, or ends us.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  ::prctl(PR_SET_NAME, "kuasar-wasm", 0, 0, 0);
  std::string why;
  const std::unique_ptr<Engine> engine = load_engine(argv[1], argv[2], why);
  if (!engine) refuse(kZygoteSocket, why);
  Inheritance inheritance{*engine, "", ::open("/dev/null", O_RDWR | O_CLOEXEC), {}};
  own_pid_namespace = ::open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
  if (aot && load_digest(why)) {
    inheritance.stamp = make_stamp(argv[1], engine->library_path(), why);
  }
  if (!why.empty()) std::fprintf(stderr, "no native code is kept: %s\n", why.c_str());
  const std::string engine_name = argv[1];
  inheritance.command_line = find_command_line();
  show_words(inheritance.command_line, {"kuasar-wasm-worker", engine_name});
  if (inheritance.null_fd < 0 || own_pid_namespace < 0) {
    refuse_errno(kZygoteSocket, "open /dev/null and /proc");
  }
  enter_empty_root();
  const std::string ready = "R" + inheritance.stamp;
  if (::send(kZygoteSocket, ready.data(), ready.size(), MSG_NOSIGNAL) < 0) return 1;
  serve(inheritance);
}
