#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/call_end.h"
#include "opentelemetry/proto/trace/v1/trace.pb.h"

// Calls as spans of OTLP. Pure.

namespace kuasar::otlp {

using Span = ::opentelemetry::proto::trace::v1::Span;

/// A traceparent that one can go on from.
struct TraceContext {
  /// 16 and 8 bytes.
  std::string trace_id;
  std::string span_id;
  bool sampled = false;
};

/// W3C's Trace Context, version 00 and what later ones begin with; nothing for one that is
/// malformed.
std::optional<TraceContext> parse_traceparent(std::string_view text);

/// Gives bytes for ids.
using Random = std::function<std::uint64_t()>;

/// The call, and below it the steps and waits that its timeline has in that time. None when the
/// caller does not sample its trace. A call without a traceparent is a trace of its own. `now` is
/// the same moment by both clocks.
struct Moment {
  std::chrono::steady_clock::time_point steady;
  std::chrono::system_clock::time_point wall;
};
std::vector<Span> spans_of(const CallEnd& call, Moment now, const Random& random);

}  // namespace kuasar::otlp
