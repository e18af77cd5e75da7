#include "daemon/heap_trim.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;

constexpr auto kPeriod = 5s;
// Less is not worth the walk through the heap and the faults afterwards.
constexpr std::size_t kWorthIt = 256 << 10;

// Free in the heap, the pages that are already given back included: malloc counts no others.
std::size_t free_bytes() {
  return ::mallinfo2().fordblks;
}

}  // namespace

Task<> trim_heap() {
  std::size_t given_back = 0;
  for (;;) {
    co_await sleep_for(kPeriod);
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
    const std::size_t free = free_bytes();
    if (free > given_back + kWorthIt) {
      ::malloc_trim(0);
      given_back = free_bytes();
    } else {
      given_back = std::min(given_back, free);
    }
  }
}

}  // namespace kuasar::daemon
