#include "base/timeline.h"

#include <algorithm>

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

std::size_t Timeline::begin(const char* name, SpanKind kind, Clock::time_point at) {
  const std::size_t index = used_.fetch_add(1, std::memory_order_relaxed);
  if (index >= kCapacity) return index;
  Slot& slot = slots_[index];
  slot.kind = kind;
  slot.begin.store((at - origin_).count(), std::memory_order_relaxed);
  slot.name.store(name, std::memory_order_release);
  return index;
}

void Timeline::end(std::size_t index, Clock::time_point at) {
  if (index >= kCapacity) return;
  slots_[index].end.store((at - origin_).count(), std::memory_order_relaxed);
}

std::vector<Timeline::Entry> Timeline::entries() const {
  std::vector<Entry> all;
  for (const Slot& slot : slots_) {
    const char* name = slot.name.load(std::memory_order_acquire);
    if (name == nullptr) continue;
    all.push_back({name, slot.kind,
                   std::chrono::nanoseconds(slot.begin.load(std::memory_order_relaxed)),
                   std::chrono::nanoseconds(slot.end.load(std::memory_order_relaxed))});
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
