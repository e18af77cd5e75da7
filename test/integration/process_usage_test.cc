#include "os/process_usage.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <string>
#include <string_view>
#include <thread>

#include "base/unique_fd.h"
#include "os/own_memory.h"
#include "os/process_events.h"
#include "support/process.h"

namespace kuasar::os {
namespace {

TEST_CASE("process usage: memory, time and threads of a process") {
  const auto before = memory_of(::getpid());
  REQUIRE(before);
  constexpr std::size_t kSize = 8 << 20;
  void* memory = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  std::fill_n(static_cast<char*>(memory), kSize, 'x');
  const auto after = memory_of(::getpid());
  REQUIRE(after);
  CHECK(after->private_dirty >= before->private_dirty + kSize);
  CHECK(after->anonymous >= before->anonymous + kSize);
  CHECK(after->rss >= after->pss);
  ::munmap(memory, kSize);

  const auto threads = threads_of(::getpid());
  std::thread other([] { ::usleep(200'000); });
  CHECK(threads_of(::getpid()).value() == threads.value() + 1);
  other.join();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (cpu_seconds_of(::getpid()).value() == 0 && std::chrono::steady_clock::now() < end) {
  }
  CHECK(cpu_seconds_of(::getpid()).value() > 0);
  const auto all = all_pids();
  CHECK(std::is_sorted(all.begin(), all.end()));
  CHECK(std::binary_search(all.begin(), all.end(), ::getpid()));
}

TEST_CASE("file pages: what cannot have changed is released, what has stays as it is") {
  char name[] = "/tmp/kuasar-pages-XXXXXX";
  const UniqueFd file(::mkstemp(name));
  REQUIRE(file);
  ::unlink(name);
  constexpr std::size_t kSize = 4 << 20;
  const std::string content(kSize, 'x');
  REQUIRE(::write(file.get(), content.data(), kSize) == static_cast<ssize_t>(kSize));
  const auto map = [&] {
    void* const at = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
    REQUIRE(at != MAP_FAILED);
    return static_cast<char*>(at);
  };
  char* const constant = map();
  char* const changed = map();
  char* const writable = map();
  CHECK(std::string_view(constant, kSize) == content);
  changed[kSize / 2] = 'y';
  writable[kSize / 2] = 'z';
  REQUIRE(::mprotect(constant, kSize, PROT_READ) == 0);
  // As a debugger leaves code in which it has put a breakpoint.
  REQUIRE(::mprotect(changed, kSize, PROT_READ | PROT_EXEC) == 0);
  const std::uint64_t before = memory_of(::getpid())->rss;
  const Result<> released = release_file_pages();
  INFO((released ? std::string() : released.error().message));
  REQUIRE(released);
  CHECK(memory_of(::getpid())->rss + kSize <= before);
  const ResidentBytes now = resident_bytes();
  CHECK(now.files + now.anonymous < before);
  CHECK(now.anonymous > 0);
  CHECK(changed[kSize / 2] == 'y');
  CHECK(writable[kSize / 2] == 'z');
  CHECK(std::string_view(constant, kSize) == content);
  for (char* at : {constant, changed, writable}) ::munmap(at, kSize);
}

TEST_CASE("process usage: a process that is gone is not found") {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK(memory_of(child).error().code == Code::kNotFound);
  CHECK(cpu_seconds_of(child).error().code == Code::kNotFound);
  CHECK(threads_of(child).error().code == Code::kNotFound);
}

TEST_CASE("process events: forks and execs are counted") {
  auto events = ProcessEvents::open();
  if (!events) SKIP(events.error().message);
  REQUIRE(events->take());
  constexpr unsigned kRuns = 5;
  for (unsigned i = 0; i < kRuns; ++i) REQUIRE(test::run_checked({"true"}));
  const auto counts = events->take();
  REQUIRE(counts);
  // Others of the machine are counted as well.
  CHECK(counts->execs >= kRuns);
  CHECK(counts->forks >= kRuns);
}

}  // namespace
}  // namespace kuasar::os
