#include <fcntl.h>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "aot_cache.h"
#include "async/task_group.h"
#include "base/files.h"
#include "os/pidfd.h"
#include "support/filtered_child.h"
#include "support/wait.h"
#include "support/wasm_engine.h"
#include "support/wasm_worker.h"
#include "worker/artifact.h"
#include "worker/digest.h"
#include "worker/seccomp.h"

// Native code of modules: who may make it, who may use it, and what happens to what is damaged.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char* kPod = "pod";

wasm::EngineConfig with_aot(wasm::EngineConfig engine) {
  engine.aot = true;
  return engine;
}

// Both engines, one after the other.
wasm::EngineConfig each_engine() {
  const std::string name = GENERATE("wasmedge", "wasmtime");
  if (name == "wasmedge") return with_aot(lab_engine());
  (void)lab_engine();
  std::string reason;
  const auto engine = find_wasmtime(reason);
  if (!engine) SKIP(reason);
  return with_aot(*engine);
}

struct Fixture {
  WasmWorker worker;
  BlockingPool pool{2};
  TaskGroup group{worker.io.executor()};
  fs::path dir;
  wasm::AotCache cache;

  explicit Fixture(wasm::EngineConfig engine = each_engine(), wasm::AotCache::Limits limits = {})
      : worker(std::move(engine)), cache(worker.spawner, pool, limits) {
    char name[] = "/tmp/kuasar-aot-XXXXXX";
    dir = ::mkdtemp(name);
    const Result<> opened = cache.open(dir / "aot");
    INFO((opened ? "" : opened.error().message));
    REQUIRE(opened);
    worker.cache = cache.directory().value();
    group.spawn(cache.run({&worker.zygote}));
  }
  ~Fixture() {
    worker.io.run(end(group));
    fs::remove_all(dir);
  }
  static Task<> end(TaskGroup& group) {
    group.cancel();
    co_await group.join();
  }

  std::vector<fs::path> files() const { return cached_code(dir / "aot"); }
  static UniqueFd open(const std::string& module) {
    UniqueFd fd(::open((wasm_modules() / module).c_str(), O_RDONLY | O_CLOEXEC));
    REQUIRE(fd);
    return fd;
  }
  static std::string digest_of(const std::string& module) {
    return wasm::sha256_of(read_file(wasm_modules() / module, 64 << 20).value());
  }
  bool await_files(std::size_t count, std::chrono::milliseconds limit = 60s) {
    const auto until = std::chrono::steady_clock::now() + limit;
    while (files().size() != count && std::chrono::steady_clock::now() < until) {
      worker.io.run(sleep_for(5ms));
    }
    return files().size() == count;
  }
  // It is compiled, or will not be.
  void await_compiler() {
    const auto until = std::chrono::steady_clock::now() + 60s;
    while (cache.pending() > 0 && std::chrono::steady_clock::now() < until) {
      worker.io.run(sleep_for(5ms));
    }
    CHECK(cache.pending() == 0);
  }
};

// The memory of a process that is executable and of no file: code that was loaded.
bool has_loaded_code(pid_t pid) {
  const std::string maps = read_file(fmt::format("/proc/{}/maps", pid)).value_or("");
  std::size_t at = 0;
  while ((at = maps.find(" r-xp 00000000 00:00 0", at)) != std::string::npos) {
    const std::string line = maps.substr(at, maps.find('\n', at) - at);
    if (line.find("[vdso]") == std::string::npos) return true;
    ++at;
  }
  return false;
}

}  // namespace

TEST_CASE("wasm AOT: a module is compiled beside its first container, and used by the next",
          "[root][wasm]") {
  Fixture f;
  const std::vector<std::string> args = {"/tool.wasm", "print", "well", "exit", "3"};
  const WasmWorker::Ended first = f.worker.run(args);
  CHECK(first.refusal == "");
  CHECK(first.code == 3);
  REQUIRE(first.wanted == Fixture::digest_of("tool.wasm"));
  REQUIRE(f.files().empty());

  f.cache.want(f.worker.zygote, first.wanted, Fixture::open("tool.wasm"), kPod);
  REQUIRE(f.await_files(1));
  const fs::path file = f.files().front();
  CHECK(file.filename() == first.wanted + "." + f.worker.zygote.stamp());
  CHECK(fs::status(file).permissions() == fs::perms(0444));

  SECTION("the next one has native code, and wants nothing") {
    Result<WasmWorker::Running> next = f.worker.make(WasmWorker::plan(args));
    REQUIRE(next);
    CHECK(next->wanted == "");
    CHECK(has_loaded_code(next->process.pid));
    WasmWorker::go(*next);
    const WasmWorker::Ended ended = f.worker.finish(std::move(*next));
    CHECK(ended.code == 3);
    CHECK(ended.out == "well\n");
  }
  SECTION("traps, functions, files are as without") {
    const WasmWorker::Ended trap = f.worker.run({"/tool.wasm", "print", "before", "trap"});
    CHECK(trap.wanted == "");
    CHECK(trap.code == 134);
    CHECK(trap.out == "before\n");
    CHECK(trap.err.find("wasm trap: ") == 0);
    CHECK(trap.err.find("unreachable") != std::string::npos);
    CHECK(f.worker.run({"/tool.wasm#answer"}).out == "the answer is 42\n");
    CHECK(f.worker.run({"/tool.wasm", "put", "/new", "text"}).code == 1);
  }
  SECTION("a file that is damaged, cut, empty or of something else is as none, and made anew") {
    const std::string whole = read_file(file, 64 << 20).value();
    std::string flipped = whole;
    flipped[flipped.size() / 2] ^= 1;
    for (const std::string& content :
         {flipped, whole.substr(0, whole.size() - 1), std::string(), std::string("\0asm", 4),
          wasm::seal("no code of any engine")}) {
      INFO("a file of " << content.size() << " bytes");
      fs::remove(file);
      REQUIRE(write_file(file, content, 0444));
      const WasmWorker::Ended ended = f.worker.run(args);
      CHECK(ended.refusal == "");
      CHECK(ended.code == 3);
      CHECK(ended.out == "well\n");
    }
    f.cache.want(f.worker.zygote, first.wanted, Fixture::open("tool.wasm"), kPod);
    f.await_compiler();
    CHECK(f.worker.run(args).wanted == "");
  }
  SECTION("links in the directory lead nowhere") {
    fs::rename(file, f.dir / "elsewhere");
    fs::create_symlink(f.dir / "elsewhere", file);
    CHECK(f.worker.run(args).wanted == first.wanted);
  }
}

TEST_CASE("wasm AOT: a guest has no way to the cache, and no call that only loading needed",
          "[root][wasm]") {
  Fixture f;
  const bool cached = GENERATE(false, true);
  CHECK(f.worker.run({"/hello.wasm"}).code == 0);
  if (cached) {
    const std::string digest = Fixture::digest_of("endless.wasm");
    f.cache.want(f.worker.zygote, digest, Fixture::open("endless.wasm"), kPod);
    REQUIRE(f.await_files(1));
  }
  Result<WasmWorker::Running> running = f.worker.make(WasmWorker::plan({"/endless.wasm"}));
  REQUIRE(running);
  CHECK(running->wanted.empty() == cached);
  WasmWorker::go(*running);
  const fs::path fds = fmt::format("/proc/{}/fd", running->process.pid);
  const auto only_streams = [&] {
    std::vector<std::string> open;
    for (const auto& entry : fs::directory_iterator(fds)) {
      const int fd = std::stoi(entry.path().filename());
      std::error_code ec;
      const std::string target = fs::read_symlink(entry.path(), ec);
      // Wasmtime's own event descriptors are no files.
      if (fd > 2 && target.find("anon_inode") == std::string::npos) open.push_back(target);
    }
    // The preopened root.
    std::erase(open, "/");
    return open.empty();
  };
  CHECK(wait_until(only_streams, 10s));
  REQUIRE(os::pidfd_signal(running->process.pidfd.get(), SIGKILL));
  CHECK(f.worker.finish(std::move(*running)).code == 137);
}

TEST_CASE("wasm AOT: a daemon that ends does not wait for its compiler", "[root][wasm]") {
  Fixture f;
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  // Its group is cancelled while it compiles, and has been when it begins.
  f.cache.want(f.worker.zygote, Fixture::digest_of("tool.wasm"), Fixture::open("tool.wasm"), kPod);
  const int turns = GENERATE(0, 1, 10);
  for (int i = 0; i < turns; ++i) f.worker.io.run(sleep_for(5ms));
  f.worker.io.run(Fixture::end(f.group));
  CHECK_FALSE(f.worker.io.run(f.worker.spawner.find("compiler/" + f.worker.zygote.config().name)));
  TaskGroup late(f.worker.io.executor());
  wasm::AotCache other(f.worker.spawner, f.pool, {});
  late.spawn(other.run({&f.worker.zygote}));
  f.worker.io.run(Fixture::end(late));
}

TEST_CASE("wasm AOT: the digest that is told is not believed", "[root][wasm]") {
  Fixture f;
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  // As a process that was broken into would say, to have its code run by others.
  f.cache.want(f.worker.zygote, Fixture::digest_of("tool.wasm"), Fixture::open("hello.wasm"), kPod);
  f.await_compiler();
  CHECK(f.files().empty());
  CHECK(f.worker.run({"/tool.wasm", "exit", "4"}).wanted == Fixture::digest_of("tool.wasm"));
}

TEST_CASE("wasm AOT: what cannot be compiled is said once, and harms nobody", "[root][wasm]") {
  Fixture f;
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  for (const char* module : {"truncated.wasm", "elf.wasm", "text.wasm", "locals.wasm"}) {
    f.cache.want(f.worker.zygote, Fixture::digest_of(module), Fixture::open(module), kPod);
    f.await_compiler();
  }
  CHECK(f.files().empty());
  f.cache.want(f.worker.zygote, Fixture::digest_of("hello.wasm"), Fixture::open("hello.wasm"),
               kPod);
  CHECK(f.await_files(1));
  CHECK(f.worker.run({"/hello.wasm"}).wanted == "");
}

TEST_CASE("wasm AOT: a compiler has little memory, little time, and is nobody", "[root][wasm]") {
  wasm::AotCache::Limits limits;
  limits.memory = 1 << 20;
  Fixture f(each_engine(), limits);
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  f.cache.want(f.worker.zygote, Fixture::digest_of("tool.wasm"), Fixture::open("tool.wasm"), kPod);
  f.await_compiler();
  CHECK(f.files().empty());
  // The zygote and its containers know nothing of it.
  CHECK(f.worker.run({"/tool.wasm", "exit", "5"}).code == 5);
}

TEST_CASE("wasm AOT: the cache stays below its size, and a module that is too large is left out",
          "[root][wasm]") {
  wasm::AotCache::Limits limits;
  limits.total = 1;
  limits.module = 100 << 10;
  Fixture f(each_engine(), limits);
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  REQUIRE(write_file(f.dir / "aot" / "old", "of another engine"));
  f.cache.want(f.worker.zygote, Fixture::digest_of("hello.wasm"), Fixture::open("hello.wasm"),
               kPod);
  f.await_compiler();
  // The newest stays, whatever its size.
  REQUIRE(f.files().size() == 1);
  CHECK(f.files().front().filename().native().starts_with(Fixture::digest_of("hello.wasm")));
  f.cache.want(f.worker.zygote, Fixture::digest_of("tool.wasm"), Fixture::open("tool.wasm"), kPod);
  f.await_compiler();
  CHECK(f.files().size() == 1);
}

TEST_CASE("wasm AOT: a directory that others may write in is refused", "[root][wasm]") {
  if (::geteuid() != 0) SKIP("owners need root");
  char name[] = "/tmp/kuasar-aot-XXXXXX";
  const fs::path dir = ::mkdtemp(name);
  os::DirectSpawner spawner;
  BlockingPool pool{1};
  const auto refusal = [&](const fs::path& path) {
    wasm::AotCache cache(spawner, pool, {});
    const Result<> opened = cache.open(path);
    CHECK_FALSE(cache.is_open());
    return opened ? "" : opened.error().message;
  };
  fs::create_directory(dir / "open");
  REQUIRE(::chmod((dir / "open").c_str(), 0777) == 0);
  CHECK(refusal(dir / "open").find("must belong to root and be writable by nobody else") !=
        std::string::npos);
  fs::create_directory(dir / "owned");
  REQUIRE(::chown((dir / "owned").c_str(), 1000, 0) == 0);
  CHECK(refusal(dir / "owned").find("has owner 1000") != std::string::npos);
  fs::create_directory_symlink(dir / "open", dir / "link");
  CHECK(refusal(dir / "link") != "");
  REQUIRE(write_file(dir / "file", ""));
  CHECK(refusal(dir / "file") != "");
  CHECK(refusal(dir / "none" / "deeper") != "");
  fs::remove_all(dir);
}

TEST_CASE("wasm AOT: WasmEdge compiles no module with a 64-bit memory", "[root][wasm]") {
  Fixture f(with_aot(lab_engine()));
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  // One memory of one page, its limits' flag being 4.
  const std::string module("\0asm\1\0\0\0\5\3\1\4\1", 13);
  REQUIRE(write_file(f.dir / "memory64.wasm", module));
  UniqueFd fd(::open((f.dir / "memory64.wasm").c_str(), O_RDONLY | O_CLOEXEC));
  f.cache.want(f.worker.zygote, wasm::sha256_of(module), std::move(fd), kPod);
  f.await_compiler();
  CHECK(f.files().empty());
}

// A module with so many functions of 4 KiB, which no other number has.
std::string big_module(std::uint32_t functions, std::uint32_t number) {
  const auto leb = [](std::uint32_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
    return bytes + static_cast<char>(value);
  };
  const auto section = [&](char id, const std::string& body) {
    return id + leb(static_cast<std::uint32_t>(body.size())) + body;
  };
  // One local, then: local.get 0, i32.const, i32.mul, local.get 0, i32.const, i32.shr_u, i32.xor,
  // local.set 0 again and again, and at last local.get 0.
  std::string body("\1\1\x7f", 3);
  for (std::uint32_t i = 0; i < 250; ++i) {
    body += "\x20\1\x41" + leb((number * 977 + i) % 8000) + "\x6c\x20\1\x41\x03\x76\x73\x21\1";
  }
  body += "\x20\1\x0b";
  std::string types = leb(functions);
  std::string bodies = leb(functions);
  for (std::uint32_t i = 0; i < functions; ++i) {
    types += '\0';
    bodies += leb(static_cast<std::uint32_t>(body.size())) + body;
  }
  return std::string("\0asm\1\0\0\0", 8) + section(1, std::string("\1\x60\1\x7f\1\x7f", 6)) +
         section(3, types) + section(10, bodies);
}

TEST_CASE("D16: what one pod has queued for the compiler does not delay another pod",
          "[root][wasm]") {
  Fixture f;
  REQUIRE(f.worker.run({"/hello.wasm"}).code == 0);
  const auto want = [&](const std::string& bytes, const std::string& pod) {
    const std::string digest = wasm::sha256_of(bytes);
    UniqueFd fd(::memfd_create("module", MFD_CLOEXEC));
    REQUIRE(::write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    f.cache.want(f.worker.zygote, digest, std::move(fd), pod);
    return digest;
  };
  for (std::uint32_t i = 0; i < 300; ++i) want(big_module(500, i), "attacker");
  const std::size_t queued = f.cache.pending();
  // Its share, and no more: the queue is not full.
  CHECK(queued == 8);
  const std::string digest =
      want(read_file(wasm_modules() / "hello.wasm", 1 << 20).value(), "witness");
  CHECK(f.cache.pending() == queued + 1);
  const auto has_it = [&] {
    const auto files = f.files();
    return std::any_of(files.begin(), files.end(), [&](const fs::path& file) {
      return file.filename().native().starts_with(digest);
    });
  };
  const auto until = std::chrono::steady_clock::now() + 20s;
  while (!has_it() && std::chrono::steady_clock::now() < until) {
    f.worker.io.run(sleep_for(5ms));
  }
  CHECK(has_it());
  // While the attacker's are being compiled, one at a time.
  CHECK(f.cache.pending() >= 6);
  CHECK(f.worker.run({"/hello.wasm"}).wanted == "");
}

// In a process of its own: filters stay.
TEST_CASE("The filter for loading code gives way to the one for running it", "[wasm]") {
  const std::vector<sock_filter> running = wasm::build_filter({});
  void* const page =
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(page != MAP_FAILED);
  const int wrong_calls = in_filtered_child(wasm::build_filter({.loads_code = true}), [&] {
    const auto protect = [&](int protection) { return ::mprotect(page, 4096, protection) == 0; };
    int wrong = 0;
    if (!protect(PROT_READ | PROT_EXEC)) wrong |= 1;
    if (protect(PROT_READ | PROT_WRITE | PROT_EXEC)) wrong |= 2;
    if (::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0 || errno != EPERM) wrong |= 4;
    if (::syscall(SYS_clone, CLONE_THREAD | CLONE_SIGHAND | CLONE_VM, 0) != -1) wrong |= 8;
    if (!lay_filter(running)) ::_exit(202);
    if (protect(PROT_READ | PROT_EXEC) || !protect(PROT_READ)) wrong |= 16;
    if (lay_filter(running)) wrong |= 32;
    return wrong;
  });
  ::munmap(page, 4096);
  CHECK(wrong_calls == 0);
}

}  // namespace kuasar::test
