// A peer of `tools/dev bench wasm`, as Kuasar's wasm-sandboxer does it: a resident process that has
// the engine in memory forks, and the child makes a virtual machine, loads the module and runs it.
// Nothing is isolated.
//
//   kuasar-fork-vm ENGINE LIBRARY MODULE
//
// For every byte on its standard input it makes a child, whose standard output is its own, waits
// for it, and writes its exit code as one byte to standard error.

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "worker/engine.h"

namespace {

using namespace kuasar::wasm;

int run(Engine& engine, const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  Plan plan;
  plan.args = {path};
  plan.preopens = {{"/", "/", false}};
  const std::string why = engine.load(plan, bytes, "");
  if (!why.empty()) return 255;
  return engine.run(plan).code;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("usage: kuasar-fork-vm ENGINE LIBRARY MODULE\n", stderr);
    return 64;
  }
  std::string why;
  const std::unique_ptr<Engine> engine = load_engine(argv[1], argv[2], why);
  if (!engine) {
    std::fprintf(stderr, "%s\n", why.c_str());
    return 1;
  }
  char byte = 0;
  while (::read(STDIN_FILENO, &byte, 1) == 1) {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(run(*engine, argv[3]));
    int status = 0;
    ::waitpid(pid, &status, 0);
    const char code = static_cast<char>(WIFEXITED(status) ? WEXITSTATUS(status) : 255);
    if (::write(STDERR_FILENO, &code, 1) != 1) return 1;
  }
  return 0;
}
