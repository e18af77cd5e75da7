#include "daemon/give_back.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/log.h"
#include "os/own_memory.h"

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;

constexpr auto kPeriod = 2s;
// Less is not worth the walk through the heap, or through the mappings, and the faults afterwards.
constexpr std::size_t kHeapWorthIt = 256 << 10;
constexpr std::size_t kFilesWorthIt = 4 << 20;

class Heap {
 public:
  void look(const os::ResidentBytes& now) {
    const std::size_t idle = idle_bytes(now);
    if (idle > left_ + kHeapWorthIt) {
      ::malloc_trim(0);
      left_ = idle_bytes(os::resident_bytes());
    } else {
      left_ = std::min(left_, idle);
    }
  }

 private:
  // In memory and of no use: the heap's free pages, and what is not of the heap, which changes
  // little. malloc itself counts what it has given back as free.
  static std::size_t idle_bytes(const os::ResidentBytes& now) {
    return now.anonymous - std::min(now.anonymous, ::mallinfo2().uordblks);
  }

  /// By the last trim.
  std::size_t left_ = 0;
};

class Files {
 public:
  void look(const os::ResidentBytes& now) {
    const bool quiet = now.files == std::exchange(last_, now.files);
    if (!quiet || now.files < left_ + kFilesWorthIt) return;
    if (Result<> released = os::release_file_pages(); !released) {
      log::debug({}, "pages of files stay: {}", released.error().message);
    }
    left_ = os::resident_bytes().files;
  }

 private:
  std::size_t last_ = 0;
  /// What the last release has left.
  std::size_t left_ = 0;
};

}  // namespace

Task<> give_memory_back() {
  Heap heap;
  Files files;
  for (;;) {
    co_await sleep_for(kPeriod);
    const bool cancelled = co_await is_cancelled();
    if (cancelled) co_return;
    const os::ResidentBytes now = os::resident_bytes();
    heap.look(now);
    files.look(now);
  }
}

}  // namespace kuasar::daemon
