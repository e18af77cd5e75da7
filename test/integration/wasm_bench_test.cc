#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "async/task_group.h"
#include "base/files.h"
#include "bench/outcome.h"
#include "bench/report.h"
#include "bench/samples.h"
#include "os/fifo.h"
#include "os/process_usage.h"
#include "os/spawn.h"
#include "support/wasm_cache_fixture.h"
#include "worker/artifact.h"
#include "worker/digest.h"

// `tools/dev bench wasm`: what a container of the wasm kind takes, in WasmDriver with its real
// zygotes, without containerd and keeper; beside crun with WasmEdge, a process that forks and makes
// a virtual machine in the child, and the engine's own command. Interleaved, each row to and fro.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using bench::Measure;
using bench::Samples;
using bench::Side;
using Clock = std::chrono::steady_clock;

constexpr int kStarts = 60;
constexpr int kCpuRounds = 4;
constexpr int kInstances = 100;
constexpr int kPeerInstances = 20;
constexpr int kBurst = 300;
constexpr int kAtOnce = 32;
// About half a second of native code.
constexpr const char* kFib = "42";

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// --- rows --------------------------------------------------------------------------------------

struct Kind {
  const char* key;
  const char* title;
  // It compiles in the container's own process: no promise is made of that.
  bool slow;
};
constexpr Kind kKinds[] = {
    {"wasmedge", "WasmEdge, interpreted", false},
    {"wasmedge_cached", "WasmEdge, cached", false},
    {"wasmedge_module", "WasmEdge, module zygote", false},
    {"wasmtime", "Wasmtime, compiled at start", true},
    {"wasmtime_cached", "Wasmtime, cached", false},
    {"wasmtime_module", "Wasmtime, module zygote", false},
};

std::string key_of(const std::string& what, const std::string& kind) {
  return what + "_" + kind;
}

const bench::Rows& wasm_rows() {
  static std::deque<std::string> words;
  static bench::Rows rows;
  if (!rows.empty()) return rows;
  constexpr auto none = std::nullopt;
  const auto add = [&](const std::string& what, const Kind& kind, const std::string& title,
                       const char* unit, Measure measure, std::optional<double> must,
                       std::optional<double> target) {
    const std::string& key = words.emplace_back(key_of(what, kind.key));
    const std::string& text = words.emplace_back(std::string(kind.title) + ": " + title);
    rows.push_back({key, text, unit, measure, must, target});
  };
  for (const Kind& kind : kKinds) {
    const bool is_module = std::string(kind.key).ends_with("module");
    const auto promise = [&](const std::string& what, const std::string& title, const char* unit,
                             Measure measure, std::optional<double> must,
                             std::optional<double> target) {
      if (kind.slow) {
        add(what, kind, title, unit, Measure::kNone, none, none);
      } else {
        add(what, kind, title, unit, measure, must, target);
      }
    };
    promise("start", "create + start", "ms", Measure::kOurs, 5.0, 3.0);
    add("large", kind, "the same, 233 KB", "ms", Measure::kNone, none, none);
    add("output", kind, "first output (peer: crun)", "ms", Measure::kNone, none, none);
    promise("rate", "to their end, 32 at once", "/s", Measure::kOursAtLeast, 300.0, 500.0);
    add("pss", kind, "PSS, of 100 (peer: crun)", "MiB", Measure::kOurs, is_module ? 0.3 : 1.0, 0.3);
    add("pss_large", kind, "the same, 233 KB", "MiB", Measure::kNone, none, none);
  }
  const Kind wasmedge{"wasmedge", "WasmEdge", false};
  const Kind wasmtime{"wasmtime", "Wasmtime", false};
  add("fork", wasmedge, "first output (peer: fork + fresh VM)", "ms", Measure::kNone, none, none);
  add("fork", wasmtime, "first output (peer: fork + fresh VM)", "ms", Measure::kNone, none, none);
  add("cpu", wasmedge, "fib(42), cached (peer: its command)", "ms", Measure::kRatio, 1.2, none);
  return rows;
}

// --- peers -------------------------------------------------------------------------------------

struct Program {
  os::Spawned process;
  UniqueFd out;
  UniqueFd in;
  UniqueFd err;

  int wait() const {
    siginfo_t info{};
    const auto pidfd = static_cast<id_t>(process.pidfd.get());
    while (::waitid(P_PIDFD, pidfd, &info, WEXITED) != 0 && errno == EINTR) {
    }
    return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
  }
};

// With pipes for its standard output, and for the two others if it converses.
Program run_program(std::vector<std::string> argv, bool converses = false) {
  Program program;
  os::ProcessSpec spec;
  spec.argv = std::move(argv);
  const auto pipe = [](UniqueFd& reads, UniqueFd& writes) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    reads = UniqueFd(ends[0]);
    writes = UniqueFd(ends[1]);
  };
  UniqueFd theirs[3];
  pipe(theirs[0], program.in);
  pipe(program.out, theirs[1]);
  pipe(program.err, theirs[2]);
  spec.fds = {{theirs[1].get(), STDOUT_FILENO}};
  if (converses) {
    spec.fds.push_back({theirs[0].get(), STDIN_FILENO});
    spec.fds.push_back({theirs[2].get(), STDERR_FILENO});
  } else {
    spec.fds.push_back({STDERR_FILENO, STDERR_FILENO});
  }
  Result<os::Spawned> spawned = os::spawn_process(spec);
  INFO((spawned ? "" : spawned.error().message));
  REQUIRE(spawned);
  program.process = std::move(*spawned);
  return program;
}

bool await_output(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, 20000) == 1 && (entry.revents & POLLIN) != 0;
}

// A whole line of hello.wasm, so that the next one begins where it should.
bool read_line(int fd) {
  char byte = 0;
  while (::read(fd, &byte, 1) == 1) {
    if (byte == '\n') return true;
  }
  return false;
}

// A program of a private prefix, on the C library there.
std::vector<std::string> in_prefix(const fs::path& prefix, const std::string& program) {
  const fs::path loader = find_below(prefix / "usr", "ld-linux");
  const fs::path libraries = find_below(prefix / "usr", "libc.so.6").parent_path();
  return {loader, "--library-path", libraries, prefix / program};
}

// crun 1.21 with WasmEdge 0.14 of Debian trixie, as its annotation has it; without cgroups, as our
// containers here.
struct Crun {
  fs::path dir;
  std::vector<std::string> command;
  int count = 0;

  explicit Crun(const fs::path& prefix) : command(in_prefix(prefix, "usr/bin/crun")) {
    char name[] = "/tmp/kuasar-crun-XXXXXX";
    dir = ::mkdtemp(name);
    for (const std::string word : {"--cgroup-manager=disabled", "--root"}) command.push_back(word);
    command.push_back(dir / "state");
    fs::create_directories(dir / "state");
  }
  ~Crun() { fs::remove_all(dir); }
  Crun(const Crun&) = delete;
  Crun& operator=(const Crun&) = delete;

  fs::path bundle(const std::string& args) {
    const fs::path path = dir / fmt::format("bundle{}", ++count);
    fs::create_directories(path);
    REQUIRE(write_file(
        path / "config.json",
        fmt::format(
            R"({{"ociVersion":"1.0.2","process":{{"args":[{}],"cwd":"/","env":[],)"
            R"("user":{{"uid":1000,"gid":1000}},"capabilities":{{}},"noNewPrivileges":true}},)"
            R"("root":{{"path":"{}","readonly":true}},)"
            R"("mounts":[{{"destination":"/dev","type":"tmpfs","source":"tmpfs"}}],)"
            R"("annotations":{{"run.oci.handler":"wasm"}},)"
            R"("linux":{{"namespaces":[{{"type":"pid"}},{{"type":"mount"}}]}}}})",
            args, wasm_modules().native())));
    return path;
  }
  std::vector<std::string> words(std::vector<std::string> more) const {
    std::vector<std::string> all = command;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

// --- our side ----------------------------------------------------------------------------------

// One way to have a container made.
struct Way {
  Kind kind;
  WasmDriverFixture* fixture;
  std::string runtime;
};

class Bench {
 public:
  Bench() : samples(wasm_rows()) {
    std::string reason;
    for (const auto find : {&find_wasmedge, &find_wasmtime}) {
      if (const auto engine = find(reason)) add_engine(*engine);
    }
    if (fixtures_.size() < 4) samples.skip("wasmtime", reason);
  }

  void measure() {
    starts("start", "/hello.wasm");
    note("create and start of a module of 16 KB");
    starts("large", "/tool.wasm");
    note("the same of one of 233 KB");
    outputs();
    note("a container's first output, beside crun's");
    forks();
    note("the same beside a fork with a fresh VM");
    for (const Way& way : ways_) burst(way);
    note("300 containers, 32 at once");
    for (const Way& way : ways_) {
      memory(way, "pss", "/pause.wasm");
      memory(way, "pss_large", "/tool.wasm");
    }
    crun_memory();
    note("memory of 100 instances");
    cpu();
    note("native code beside the engine's own command");
  }

  Samples samples;

 private:
  static void note(const std::string& words) {
    fmt::print("{}\n", words);
    std::fflush(stdout);
  }

  void add_engine(wasm::EngineConfig engine) {
    const auto kind = [&](const std::string& suffix) {
      return *std::find_if(std::begin(kKinds), std::end(kKinds),
                           [&](const Kind& each) { return each.key == engine.name + suffix; });
    };
    engine.aot = false;
    auto plain = std::make_unique<WasmDriverFixture>();
    plain->restart({engine});
    ways_.push_back({kind(""), plain.get(), engine.name});
    engine.aot = true;
    auto cached = std::make_unique<WasmCacheFixture>(engine);
    for (const char* module : {"/hello.wasm", "/tool.wasm"}) cached->warm(module);
    cached->warm("/pause.wasm", false);
    ways_.push_back({kind("_cached"), cached.get(), engine.name});
    ways_.push_back({kind("_module"), cached.get(), engine.name + "/module"});
    if (engine.name == "wasmedge") cached_ = cached.get();
    fixtures_.push_back(std::move(plain));
    fixtures_.push_back(std::move(cached));
  }

  task::ContainerPlan plan(const Way& way, const std::string& id,
                           const std::vector<std::string>& args) {
    way.fixture->engine = way.runtime;
    return way.fixture->plan(id, args);
  }

  std::string next_id(const Way& way) { return fmt::format("b{}{}", way.kind.key, ++count_); }

  // To and fro: every other round backwards.
  template <typename F>
  void rounds(int count, F each) {
    for (int round = 0; round < count; ++round) {
      for (std::size_t i = 0; i < ways_.size(); ++i) {
        each(ways_[round % 2 == 0 ? i : ways_.size() - 1 - i]);
      }
    }
  }

  void end(const Way& way, const std::string& id, int expected) {
    WasmDriverFixture& f = *way.fixture;
    const int code = f.exit_code(id);
    if (code != expected) samples.add_failure(fmt::format("{}: exit code {}", id, code));
    REQUIRE(f.io.run(f.driver->remove(id)));
  }

  void starts(const std::string& row, const std::string& module) {
    rounds(kStarts, [&](const Way& way) {
      WasmDriverFixture& f = *way.fixture;
      const std::string id = next_id(way);
      const auto streams = f.stdio(id);
      task::ContainerPlan container = plan(way, id, {module, "print", "x"});
      const auto begin = Clock::now();
      REQUIRE(f.io.run(f.driver->create(std::move(container), *streams)));
      REQUIRE(f.io.run(f.driver->start(id)));
      samples.add(key_of(row, way.kind.key), Side::kOurs, milliseconds_since(begin));
      end(way, id, 0);
    });
  }

  double first_output(const Way& way) {
    WasmDriverFixture& f = *way.fixture;
    const std::string id = next_id(way);
    f.keep_output(id);
    const auto streams = f.stdio(id);
    task::ContainerPlan container = plan(way, id, {"/hello.wasm"});
    const auto begin = Clock::now();
    REQUIRE(f.io.run(f.driver->create(std::move(container), *streams)));
    REQUIRE(f.io.run(f.driver->start(id)));
    const bool written = await_output(f.outputs.at(id).get());
    const double took = milliseconds_since(begin);
    if (!written) samples.add_failure(id + ": no output");
    end(way, id, 0);
    f.outputs.erase(id);
    return took;
  }

  std::optional<fs::path> peer() {
    const char* prefix = std::getenv("KUASAR_LAB_WASM_PEER");
    if (prefix != nullptr && fs::exists(prefix)) return prefix;
    samples.skip("crun", "KUASAR_LAB_WASM_PEER names no prefix with crun and WasmEdge");
    return std::nullopt;
  }

  void outputs() {
    const auto prefix = peer();
    std::optional<Crun> crun;
    fs::path bundle;
    if (prefix) bundle = crun.emplace(*prefix).bundle("\"/hello.wasm\"");
    rounds(kStarts / 2, [&](const Way& way) {
      samples.add(key_of("output", way.kind.key), Side::kOurs, first_output(way));
      if (!crun) return;
      const auto begin = Clock::now();
      const Program run =
          run_program(crun->words({"run", "-b", bundle, fmt::format("o{}", ++count_)}));
      const bool written = await_output(run.out.get());
      samples.add(key_of("output", way.kind.key), Side::kPeer, milliseconds_since(begin));
      if (run.wait() != 0 || !written) samples.add_failure("crun run: failed");
    });
  }

  void forks() {
    const fs::path program =
        fs::read_symlink("/proc/self/exe").parent_path() / "peers" / "kuasar-fork-vm";
    REQUIRE(fs::exists(program));
    for (const Way& way : ways_) {
      if (way.runtime != way.kind.key) continue;
      std::string reason;
      const auto engine = way.runtime == "wasmedge" ? find_wasmedge(reason) : find_wasmtime(reason);
      std::vector<std::string> argv = {program, engine->name, engine->library,
                                       wasm_modules() / "hello.wasm"};
      if (!engine->loader.empty()) {
        argv.insert(argv.begin(), {engine->loader, "--library-path", engine->library_path});
      }
      Program forker = run_program(argv, true);
      const std::string row = key_of("fork", way.kind.key);
      const auto theirs = [&] {
        const auto begin = Clock::now();
        REQUIRE(::write(forker.in.get(), "x", 1) == 1);
        const bool written = await_output(forker.out.get());
        samples.add(row, Side::kPeer, milliseconds_since(begin));
        char code = 1;
        const bool ended = read_line(forker.out.get()) && ::read(forker.err.get(), &code, 1) == 1;
        if (!written || !ended || code != 0) samples.add_failure("fork + fresh VM: failed");
      };
      for (int round = 0; round < kStarts / 2; ++round) {
        samples.add(row, Side::kOurs, first_output(way));
        theirs();
        theirs();
        samples.add(row, Side::kOurs, first_output(way));
      }
      forker.in.reset();
      (void)forker.wait();
    }
  }

  void burst(const Way& way) {
    WasmDriverFixture& f = *way.fixture;
    int next = 0;
    int failed = 0;
    const auto one_after_the_other = [&]() -> Task<> {
      while (next < kBurst) {
        ++next;
        const std::string id = next_id(way);
        const auto streams = f.stdio(id);
        task::ContainerPlan container = plan(way, id, {"/hello.wasm"});
        Result<> done = co_await f.driver->create(std::move(container), *streams);
        if (done) done = co_await f.driver->start(id);
        task::ProcessRef ref;
        ref.container = id;
        if (done) co_await f.driver->wait_exit(ref);
        if (!done) ++failed;
      }
    };
    const auto all = [&]() -> Task<> {
      TaskGroup workers(co_await asio::this_coro::executor);
      for (int i = 0; i < kAtOnce; ++i) workers.spawn(one_after_the_other());
      co_await workers.join();
    };
    const std::size_t first = f.ids.size();
    const auto begin = Clock::now();
    f.io.run(all(), 120s);
    samples.add(key_of("rate", way.kind.key), Side::kOurs,
                1000 * kBurst / milliseconds_since(begin));
    if (failed > 0) samples.add_failure(fmt::format("{} of a burst: failed", failed));
    for (std::size_t i = first; i < f.ids.size(); ++i) {
      REQUIRE(f.io.run(f.driver->remove(f.ids[i])));
    }
  }

  static double pss(const std::vector<pid_t>& pids) {
    os::MemoryUse sum;
    for (const pid_t pid : pids) {
      const Result<os::MemoryUse> one = os::memory_of(pid);
      REQUIRE(one);
      sum += *one;
    }
    return static_cast<double>(sum.pss) / static_cast<double>(pids.size()) / (1 << 20);
  }

  void memory(const Way& way, const std::string& row, const std::string& module) {
    WasmDriverFixture& f = *way.fixture;
    std::vector<std::string> ids;
    std::vector<pid_t> pids;
    for (int i = 0; i < kInstances; ++i) {
      ids.push_back(next_id(way));
      f.create(plan(way, ids.back(), {module, "sleep", "3600"}));
      REQUIRE(f.io.run(f.driver->start(ids.back())));
      pids.push_back(f.driver->host_pid({ids.back(), ""}));
    }
    // They run, and wait.
    f.io.run(sleep_for(300ms));
    samples.add(key_of(row, way.kind.key), Side::kOurs, pss(pids));
    for (const std::string& id : ids) REQUIRE(f.io.run(f.driver->remove(id)));
  }

  void crun_memory() {
    const auto prefix = peer();
    if (!prefix) return;
    Crun crun(*prefix);
    const fs::path bundle = crun.bundle("\"/pause.wasm\"");
    std::vector<pid_t> pids;
    for (int i = 0; i < kPeerInstances; ++i) {
      const std::string file = crun.dir / fmt::format("pid{}", i);
      const Program run = run_program(
          crun.words({"run", "-d", "--pid-file", file, "-b", bundle, fmt::format("m{}", i)}));
      REQUIRE(run.wait() == 0);
      pids.push_back(std::stoi(read_file(file).value()));
    }
    std::this_thread::sleep_for(300ms);
    const double each = pss(pids);
    for (const Way& way : ways_) samples.add(key_of("pss", way.kind.key), Side::kPeer, each);
    for (int i = 0; i < kPeerInstances; ++i) {
      (void)run_program(crun.words({"delete", "-f", fmt::format("m{}", i)})).wait();
    }
  }

  // The code that our containers run, without the head of its file.
  fs::path code_file() {
    const std::string digest =
        wasm::sha256_of(read_file(wasm_modules() / "tool.wasm", 64 << 20).value());
    for (const fs::path& each : cached_code(cached_->dir / "aot")) {
      if (!each.filename().native().starts_with(digest)) continue;
      const std::string file = read_file(each, 64 << 20).value();
      const auto code = wasm::unseal(file);
      REQUIRE(code);
      const fs::path path = cached_->dir / "code.wasm";
      REQUIRE(write_file(path, std::string(*code), 0644));
      return path;
    }
    FAIL("tool.wasm is not in the cache");
    return {};
  }

  void cpu() {
    const char* prefix = std::getenv("KUASAR_LAB_WASMEDGE");
    if (prefix == nullptr || !fs::exists(fs::path(prefix) / "usr/bin/wasmedge")) {
      samples.skip("cpu_wasmedge", "KUASAR_LAB_WASMEDGE names no prefix with usr/bin/wasmedge");
      return;
    }
    std::vector<std::string> command = in_prefix(prefix, "usr/bin/wasmedge");
    for (const std::string word : {"run", "--run-mode", "aot"}) command.push_back(word);
    command.push_back(code_file());
    for (const std::string word : {"fib", kFib}) command.push_back(word);
    const auto way = std::find_if(ways_.begin(), ways_.end(), [](const Way& each) {
      return std::string(each.kind.key) == "wasmedge_cached";
    });
    const auto ours = [&] {
      WasmDriverFixture& f = *way->fixture;
      const std::string id = next_id(*way);
      const auto begin = Clock::now();
      f.create(plan(*way, id, {"/tool.wasm", "fib", kFib}));
      REQUIRE(f.io.run(f.driver->start(id)));
      const int code = f.exit_code(id);
      samples.add("cpu_wasmedge", Side::kOurs, milliseconds_since(begin));
      if (code != 0) samples.add_failure(fmt::format("{}: exit code {}", id, code));
      REQUIRE(f.io.run(f.driver->remove(id)));
    };
    const auto theirs = [&] {
      const auto begin = Clock::now();
      const Program run = run_program(command);
      if (run.wait() != 0) samples.add_failure("wasmedge run: failed");
      samples.add("cpu_wasmedge", Side::kPeer, milliseconds_since(begin));
    };
    for (int round = 0; round < kCpuRounds; ++round) {
      ours();
      theirs();
      theirs();
      ours();
    }
  }

  std::vector<std::unique_ptr<WasmDriverFixture>> fixtures_;
  std::vector<Way> ways_;
  WasmCacheFixture* cached_ = nullptr;
  int count_ = 0;
};

}  // namespace

TEST_CASE("wasm bench", "[.wasm-bench]") {
  (void)lab_engine();
  Bench bench;
  bench.measure();
  const std::string table =
      fmt::format("\n{}\n{}", bench::describe_machine(), bench::table_of(bench.samples));
  fmt::print("{}", table);
  if (const char* out = std::getenv("KUASAR_BENCH_OUT")) {
    REQUIRE(bench::write_results(out, table, bench.samples));
  }
  CHECK(bench::conclude(bench.samples) == 0);
}

}  // namespace kuasar::test
