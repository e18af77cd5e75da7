#include "aot_cache.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "async/task_group.h"
#include "base/files.h"
#include "base/log.h"
#include "launch.h"
#include "os/detached_mount.h"
#include "os/fifo.h"
#include "worker/artifact.h"
#include "worker/digest.h"

namespace kuasar::wasm {
namespace {

namespace fs = std::filesystem;

// Each has a descriptor.
constexpr std::size_t kMaxQueue = 256;
constexpr std::size_t kMaxOfPod = 8;
constexpr std::size_t kCompilers = 2;
// Names that are remembered; a daemon that has seen more asks again.
constexpr std::size_t kMaxKnown = 4096;
// Of the clock, for a machine that is busy with better things: it has the lowest priority.
constexpr int kPatience = 5;
// nobody: a user who owns nothing.
constexpr std::uint32_t kNobody = 65534;
constexpr mode_t kDirMode = 0711;
// Containers read it as their own users.
constexpr mode_t kFileMode = 0444;

// The first one has the name that the only one had.
std::string compiler_key(const EngineZygote& zygote, std::size_t slot) {
  const std::string name = "compiler/" + zygote.config().name;
  return slot == 0 ? name : fmt::format("{}/{}", name, slot);
}

Result<std::string> read_all(int fd, std::uint64_t limit) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return fail_errno("stat");
  if (static_cast<std::uint64_t>(st.st_size) > limit) {
    return fail(Code::kResourceExhausted, "it has {} bytes, at most {} are taken", st.st_size,
                limit);
  }
  std::string bytes(static_cast<std::size_t>(st.st_size), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::pread(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("read");
    if (n == 0) return fail(Code::kUnavailable, "it became shorter while it was read");
    done += static_cast<std::size_t>(n);
  }
  return bytes;
}

// The module as it is now, in a file that nobody can change: its owner can change his own.
Result<UniqueFd> snapshot(const UniqueFd& module, const std::string& digest, std::uint64_t limit) {
  TRY(const std::string bytes, read_all(module.get(), limit));
  if (sha256_of(bytes) != digest) {
    return fail(Code::kFailedPrecondition, "it is another one by now");
  }
  TRY(UniqueFd copy, memory_file("kuasar-wasm-module", bytes));
  constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (::fcntl(copy.get(), F_ADD_SEALS, kSeals) != 0) return fail_errno("seal");
  return copy;
}

// Its own PID and mount namespace, an empty root that is a little memory, no network to speak of:
// it cannot make sockets.
Result<Launch> plan_compiler(const UniqueFd& source, const UniqueFd& code,
                             const AotCache::Limits& limits) {
  Launch launch;
  launch.request.new_pid = 1;
  launch.request.new_mounts = 1;
  TRY(const os::MountPlan root,
      os::plan_mount({"tmpfs",
                      "kuasar-wasm-compiler",
                      {"nosuid", "nodev", "noexec", "mode=1777",
                       fmt::format("size={}", limits.code * 2), "nr_inodes=64"}}));
  TRY(UniqueFd tree, os::make_detached_mount(root));
  launch.plan.root = launch.add(std::move(tree));
  TRY(UniqueFd from, os::duplicate(source.get()));
  launch.plan.source = launch.add(std::move(from));
  TRY(UniqueFd to, os::duplicate(code.get()));
  launch.plan.code = launch.add(std::move(to));
  launch.plan.module = "compiler";
  launch.plan.args = {"kuasar-wasm-compiler"};
  launch.plan.cwd = "/";
  launch.plan.uid = kNobody;
  launch.plan.gid = kNobody;
  const auto limit = [&](int resource, std::uint64_t value) {
    launch.plan.limits.push_back({resource, value, value});
  };
  limit(RLIMIT_DATA, limits.memory);
  limit(RLIMIT_CPU, limits.cpu_seconds);
  limit(RLIMIT_FSIZE, limits.code);
  limit(RLIMIT_CORE, 0);
  return launch;
}

struct File {
  std::string name;
  std::uint64_t size = 0;
  fs::file_time_type written;
};

// Oldest first.
std::vector<File> files_in(const std::string& dir) {
  std::vector<File> files;
  std::error_code ec;
  for (fs::directory_iterator entry(dir, ec), end; !ec && entry != end; entry.increment(ec)) {
    std::error_code none;
    if (!entry->is_regular_file(none)) continue;
    files.push_back(
        {entry->path().filename().native(), entry->file_size(none), entry->last_write_time(none)});
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.written < b.written; });
  return files;
}

}  // namespace

AotCache::AotCache(os::Spawner& spawner, BlockingPool& pool, Limits limits)
    : spawner_(spawner),
      pool_(pool),
      limits_(limits),
      gate_(kCompilers, 1),
      slots_(kCompilers),
      more_(std::make_shared<Event>()) {}

Result<> AotCache::open(const std::string& path) {
  std::string why;
  if (!load_digest(why)) return fail(Code::kFailedPrecondition, "{}", why);
  CHECK_OK(make_dir(path, kDirMode));
  UniqueFd dir(::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat st {};
  if (!dir || ::fstat(dir.get(), &st) != 0) return fail_errno("open", path);
  if (st.st_uid != 0 || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return fail(Code::kFailedPrecondition,
                "{}: must belong to root and be writable by nobody else, but has owner {} and mode "
                "{:04o}",
                path, st.st_uid, st.st_mode & 07777U);
  }
  // One that a user made by hand.
  if (::chmod(path.c_str(), kDirMode) != 0) return fail_errno("chmod", path);
  dir_ = std::move(dir);
  path_ = path;
  return {};
}

Result<UniqueFd> AotCache::directory() const {
  return os::duplicate(dir_.get());
}

void AotCache::want(EngineZygote& zygote, std::string digest, UniqueFd module, std::string pod) {
  if (!dir_ || pending_ >= kMaxQueue || zygote.stamp().empty() || !is_digest(digest)) return;
  const auto queued = pending_of_.find(pod);
  if (queued != pending_of_.end() && queued->second >= kMaxOfPod) return;
  std::string name = artifact_name(digest, zygote.stamp());
  if (known_.size() >= kMaxKnown) known_.clear();
  if (!known_.emplace(pod, name).second) return;
  ++pending_;
  ++pending_of_[pod];
  queue_.push_back(
      {&zygote, std::move(digest), std::move(module), std::move(pod), std::move(name)});
  more_->set();
}

Task<> AotCache::run(std::vector<EngineZygote*> zygotes) {
  for (EngineZygote* zygote : zygotes) {
    for (std::size_t slot = 0; slot < kCompilers; ++slot) {
      co_await os::end_named(spawner_, compiler_key(*zygote, slot));
    }
  }
  TaskGroup jobs(co_await asio::this_coro::executor);
  // A wait that begins after the cancellation would not end by it.
  bool cancelled = co_await is_cancelled();
  while (!cancelled) {
    while (!queue_.empty()) {
      Job job = std::move(queue_.front());
      queue_.pop_front();
      jobs.spawn(serve(std::move(job)));
    }
    more_ = std::make_shared<Event>();
    const auto more = more_;
    co_await more->wait();
    cancelled = co_await is_cancelled();
  }
  jobs.cancel();
  co_await jobs.join();
}

Task<> AotCache::serve(Job job) {
  {
    const FairGate::Pass pass = co_await gate_.enter(job.pod);
    const bool cancelled = co_await is_cancelled();
    if (cancelled || has(job.name)) {
      known_.erase({job.pod, job.name});
    } else {
      const auto free = std::find(slots_.begin(), slots_.end(), false);
      const auto slot = static_cast<std::size_t>(free - slots_.begin());
      slots_[slot] = true;
      co_await compile_in_slot(job, slot);
      slots_[slot] = false;
    }
  }
  --pending_;
  const auto left = pending_of_.find(job.pod);
  if (--left->second == 0) pending_of_.erase(left);
}

Task<> AotCache::compile_in_slot(Job& job, std::size_t slot) {
  const auto begun = std::chrono::steady_clock::now();
  Result<> done = co_await compile(job, compiler_key(*job.zygote, slot));
  co_await os::end_named(spawner_, compiler_key(*job.zygote, slot));
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begun);
  const std::string_view engine = job.zygote->config().name;
  const std::string_view module = std::string_view(job.digest).substr(0, 12);
  if (done) {
    known_.erase({job.pod, job.name});
    log::info({job.pod}, "module {} is compiled for {}: {} ms", module, engine, took.count());
    co_return;
  }
  const bool cancelled = co_await is_cancelled();
  if (cancelled) co_return;
  log::warning({job.pod}, "module {} is not compiled for {}: {}", module, engine,
               done.error().message);
}

bool AotCache::has(const std::string& name) const {
  return ::faccessat(dir_.get(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

Task<Result<>> AotCache::compile(Job& job, std::string key) {
  auto copy = [&job, limit = limits_.module] { return snapshot(job.module, job.digest, limit); };
  CO_TRY(const UniqueFd source, co_await pool_.run(std::move(copy)));
  job.module.reset();
  CO_TRY(const UniqueFd code, memory_file("kuasar-wasm-code", ""));
  CO_CHECK(co_await run_compiler(job, std::move(key), source, code));
  auto write = [this, &job, &code] { return keep(job.name, code); };
  co_return co_await pool_.run(std::move(write));
}

Task<Result<>> AotCache::run_compiler(Job& job, std::string key, const UniqueFd& source,
                                      const UniqueFd& code) {
  co_await os::end_named(spawner_, key);
  CO_TRY(Launch launch, plan_compiler(source, code, limits_));
  const auto patience = std::chrono::seconds(limits_.cpu_seconds * kPatience);
  const Result<Helper> compiler =
      co_await launch_helper(spawner_, *job.zygote, std::move(launch), std::move(key), patience,
                             "the compiler (has it enough memory?)");
  if (!compiler) co_return fail(compiler.error());
  co_return Result<>();
}

Result<> AotCache::keep(const std::string& name, const UniqueFd& code) const {
  TRY(const std::string bytes, read_all(code.get(), limits_.code));
  const std::string file = seal(bytes);
  std::vector<File> files = files_in(path_);
  std::uint64_t total = file.size();
  for (const File& each : files) total += each.size;
  for (const File& each : files) {
    if (total <= limits_.total) break;
    if (::unlinkat(dir_.get(), each.name.c_str(), 0) == 0) total -= each.size;
  }
  return write_file_atomic(fs::path(path_) / name, file, kFileMode);
}

}  // namespace kuasar::wasm
