#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace kuasar {

/// A step is work of ours, a wait is for somebody else: a lock, a thread, a program.
enum class SpanKind : std::uint8_t { kStep, kWait };

/// What the start of one pod or container took, step by step: a record of fixed size (0.6 KiB),
/// made with the pod or container and gone with it, in microseconds. Recording costs two reads of
/// the clock per span and neither allocates nor locks. Any thread may record and read.
class Timeline {
 public:
  using Clock = std::chrono::steady_clock;
  /// Spans that are kept; later ones are counted only. A start of the runc kind has about 20.
  static constexpr std::size_t kCapacity = 32;

  struct Entry {
    const char* name;
    SpanKind kind;
    /// Since origin().
    std::chrono::nanoseconds begin;
    /// kUnderWay: not yet.
    std::chrono::nanoseconds end;
    /// In how many of the spans before it this one lies.
    int depth = 0;
  };
  static constexpr std::chrono::nanoseconds kUnderWay{-1};

  /// `origin` is the first moment; begun_at() is the same by the wall clock.
  explicit Timeline(Clock::time_point origin = Clock::now());

  /// `name` must live for ever: a literal. Gives what end() wants.
  std::size_t begin(const char* name, SpanKind kind, Clock::time_point at = Clock::now());
  void end(std::size_t index, Clock::time_point at = Clock::now());

  Clock::time_point origin() const { return origin_; }
  std::chrono::system_clock::time_point begun_at() const { return begun_at_; }
  /// In the order of their beginnings.
  std::vector<Entry> entries() const;
  /// Spans that found no room.
  std::size_t dropped() const;

 private:
  /// Microseconds since origin(); later than 35 minutes is said to be then.
  using Moment = std::int32_t;
  static constexpr Moment kOpen = -1;
  Moment moment(Clock::time_point at) const;

  struct Slot {
    /// Written last of the three that begin() writes.
    std::atomic<const char*> name{nullptr};
    std::atomic<Moment> begin{0};
    std::atomic<Moment> end{kOpen};
  };

  Clock::time_point origin_;
  std::chrono::system_clock::time_point begun_at_;
  std::atomic<std::size_t> used_{0};
  std::array<Slot, kCapacity> slots_;
  std::array<SpanKind, kCapacity> kinds_{};
};

using TimelinePtr = std::shared_ptr<Timeline>;

/// Records one span from its construction to end(), or to its own end. Without a timeline it does
/// nothing: an exec has none, nor has what an earlier daemon started.
class Span {
 public:
  Span() = default;
  Span(TimelinePtr timeline, const char* name, SpanKind kind = SpanKind::kStep)
      : timeline_(std::move(timeline)) {
    if (timeline_) index_ = timeline_->begin(name, kind);
  }
  Span(TimelinePtr timeline, const char* name, Timeline::Clock::time_point begun)
      : timeline_(std::move(timeline)) {
    if (timeline_) index_ = timeline_->begin(name, SpanKind::kStep, begun);
  }
  Span(Span&& other) noexcept
      : timeline_(std::move(other.timeline_)), index_(std::exchange(other.index_, 0)) {}
  Span& operator=(Span&&) = delete;
  ~Span() { end(); }

  void end() {
    if (timeline_) timeline_->end(index_);
    timeline_.reset();
  }

 private:
  TimelinePtr timeline_;
  std::size_t index_ = 0;
};

}  // namespace kuasar
