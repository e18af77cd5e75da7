// kuasar-wasm-worker: a zygote. It loads a WebAssembly engine and then, as often as it is asked,
// makes a child that has the engine in memory already. It reads nothing that comes from a pod or an
// image: that is the child's, which confines itself first (child.cc). The child's parent is ours,
// the keeper, so that it outlives both the daemon and this process, which ends with either.
//
//   kuasar-wasm-worker ENGINE LIBRARY [aot]     descriptor 3: see plan.h
//
// With "aot" its first message has the stamp of its native code (artifact.h) behind the "R".

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "worker/artifact.h"
#include "worker/child.h"
#include "worker/confine.h"
#include "worker/digest.h"
#include "worker/serve.h"

namespace {

using namespace kuasar::wasm;

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

// See Inheritance::no_input_fd. -1 with errno.
int make_no_input() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return -1;
  ::close(ends[1]);
  return ends[0];
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
  Inheritance inheritance{*engine,
                          "",
                          ::open("/dev/null", O_RDWR | O_CLOEXEC),
                          make_no_input(),
                          ::open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC),
                          {},
                          ""};
  if (aot && load_digest(why)) {
    inheritance.stamp = make_stamp(argv[1], engine->library_path(), why);
  }
  if (!why.empty()) std::fprintf(stderr, "no native code is kept: %s\n", why.c_str());
  const std::string engine_name = argv[1];
  inheritance.command_line = find_command_line();
  show_words(inheritance.command_line, {"kuasar-wasm-worker", engine_name});
  if (inheritance.null_fd < 0 || inheritance.no_input_fd < 0 || inheritance.own_pid_namespace < 0) {
    refuse_errno(kZygoteSocket, "open /dev/null, /proc and a pipe");
  }
  enter_empty_root();
  const std::string ready = "R" + inheritance.stamp;
  if (::send(kZygoteSocket, ready.data(), ready.size(), MSG_NOSIGNAL) < 0) return 1;
  serve(inheritance);
}
