#include "base/timeline.h"

#include <algorithm>
#include <limits>

namespace kuasar {
namespace {

// Whether `inner` lies in `outer`, which began before it or with it. What is under way ends last.
bool lies_in(const Timeline::Entry& inner, const Timeline::Entry& outer) {
  if (outer.end == Timeline::kUnderWay) return true;
  return inner.end != Timeline::kUnderWay && inner.end <= outer.end;
}

}  // namespace

Timeline::Timeline(Clock::time_point origin)
    : origin_(origin),
      begun_at_(
          std::chrono::system_clock::now() -
          std::chrono::duration_cast<std::chrono::system_clock::duration>(Clock::now() - origin)) {}

Timeline::Moment Timeline::moment(Clock::time_point at) const {
  const auto since = std::chrono::duration_cast<std::chrono::microseconds>(at - origin_).count();
  constexpr std::chrono::microseconds::rep kLast = std::numeric_limits<Moment>::max();
  return static_cast<Moment>(std::clamp<std::chrono::microseconds::rep>(since, 0, kLast));
}

std::size_t Timeline::begin(const char* name, SpanKind kind, Clock::time_point at) {
  const std::size_t index = used_.fetch_add(1, std::memory_order_relaxed);
  if (index >= kCapacity) return index;
  kinds_[index] = kind;
  slots_[index].begin.store(moment(at), std::memory_order_relaxed);
  slots_[index].name.store(name, std::memory_order_release);
  return index;
}

void Timeline::end(std::size_t index, Clock::time_point at) {
  if (index >= kCapacity) return;
  slots_[index].end.store(moment(at), std::memory_order_relaxed);
}

std::vector<Timeline::Entry> Timeline::entries() const {
  std::vector<Entry> all;
  for (std::size_t index = 0; index < kCapacity; ++index) {
    const Slot& slot = slots_[index];
    const char* name = slot.name.load(std::memory_order_acquire);
    if (name == nullptr) continue;
    const std::chrono::microseconds begin(slot.begin.load(std::memory_order_relaxed));
    const Moment end = slot.end.load(std::memory_order_relaxed);
    all.push_back(
        {name, kinds_[index], begin, end == kOpen ? kUnderWay : std::chrono::microseconds(end)});
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  std::vector<const Entry*> open;
  for (Entry& entry : all) {
    while (!open.empty() && !lies_in(entry, *open.back())) open.pop_back();
    entry.depth = static_cast<int>(open.size());
    open.push_back(&entry);
  }
  return all;
}

std::size_t Timeline::dropped() const {
  const std::size_t used = used_.load(std::memory_order_relaxed);
  return used > kCapacity ? used - kCapacity : 0;
}

}  // namespace kuasar
