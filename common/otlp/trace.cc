#include "otlp/trace.h"

#include <algorithm>
#include <utility>

namespace kuasar::otlp {
namespace {

constexpr std::size_t kTraceBytes = 16;
constexpr std::size_t kSpanBytes = 8;

std::optional<unsigned> digit(char c) {
  // The standard allows lower case only.
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  return std::nullopt;
}

std::optional<std::string> bytes_of(std::string_view hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    const auto high = digit(hex[i]);
    const auto low = digit(hex[i + 1]);
    if (!high || !low) return std::nullopt;
    bytes.push_back(static_cast<char>(*high * 16 + *low));
  }
  return bytes;
}

// A part of `text` and what separates it from the next.
std::optional<std::string> part(std::string_view text, std::size_t from, std::size_t digits) {
  if (text.size() < from + digits) return std::nullopt;
  if (text.size() > from + digits && text[from + digits] != '-') return std::nullopt;
  return bytes_of(text.substr(from, digits));
}

bool all_zero(const std::string& bytes) {
  return bytes.find_first_not_of('\0') == std::string::npos;
}

std::string random_bytes(std::size_t size, const Random& random) {
  std::string bytes;
  while (bytes.size() < size || all_zero(bytes)) {
    if (bytes.size() >= size) bytes.clear();
    std::uint64_t word = random();
    for (std::size_t i = 0; i < sizeof word && bytes.size() < size; ++i, word >>= 8) {
      bytes.push_back(static_cast<char>(word & 0xff));
    }
  }
  return bytes;
}

void set(Span& span, const char* key, std::string_view value) {
  if (value.empty()) return;
  auto* attribute = span.add_attributes();
  attribute->set_key(key);
  attribute->mutable_value()->set_string_value(std::string(value));
}

std::uint64_t unix_nano(std::chrono::steady_clock::time_point at, Moment now) {
  const auto since_epoch = std::chrono::duration_cast<std::chrono::nanoseconds>(
      now.wall.time_since_epoch() - (now.steady - at));
  return static_cast<std::uint64_t>(since_epoch.count());
}

Span root_of(const CallEnd& call, Moment now) {
  Span span;
  span.set_name(std::string(call.service) + "." + std::string(call.method));
  span.set_kind(Span::SPAN_KIND_SERVER);
  span.set_start_time_unix_nano(unix_nano(call.begun, now));
  span.set_end_time_unix_nano(unix_nano(call.ended, now));
  set(span, "rpc.system", call.service == "Task" ? "ttrpc" : "grpc");
  set(span, "rpc.service", call.service);
  set(span, "rpc.method", call.method);
  if (call.code != Code::kOk) {
    span.mutable_status()->set_code(::opentelemetry::proto::trace::v1::Status::STATUS_CODE_ERROR);
    span.mutable_status()->set_message(std::string(code_name(call.code)));
  }
  if (call.notes == nullptr) return span;
  set(span, "kuasar.sandbox.id", call.notes->sandbox);
  set(span, "kuasar.container.id", call.notes->container);
  set(span, "kuasar.exec.id", call.notes->exec);
  return span;
}

// The call's own entry of the timeline is the root already.
void add_steps(const CallEnd& call, Moment now, const Random& random, std::vector<Span>& spans) {
  const Timeline& timeline = *call.notes->timeline;
  const std::string trace_id = spans.front().trace_id();
  std::vector<std::string> parents{spans.front().span_id()};
  for (const Timeline::Entry& entry : timeline.entries()) {
    const auto begun = timeline.origin() + entry.begin;
    // Its moments are cut to microseconds.
    const bool before = begun + std::chrono::microseconds(1) <= call.begun;
    if (entry.depth == 0 || before || begun > call.ended) continue;
    const auto ended =
        entry.end == Timeline::kUnderWay ? call.ended : timeline.origin() + entry.end;
    Span& span = spans.emplace_back();
    span.set_trace_id(trace_id);
    span.set_span_id(random_bytes(kSpanBytes, random));
    const auto depth = std::min<std::size_t>(static_cast<std::size_t>(entry.depth), parents.size());
    parents.resize(depth);
    span.set_parent_span_id(parents.back());
    parents.push_back(span.span_id());
    span.set_name(entry.name);
    span.set_kind(Span::SPAN_KIND_INTERNAL);
    span.set_start_time_unix_nano(unix_nano(begun, now));
    span.set_end_time_unix_nano(unix_nano(ended, now));
    if (entry.kind == SpanKind::kWait) {
      auto* attribute = span.add_attributes();
      attribute->set_key("kuasar.wait");
      attribute->mutable_value()->set_bool_value(true);
    }
  }
}

}  // namespace

std::optional<TraceContext> parse_traceparent(std::string_view text) {
  const auto version = part(text, 0, 2);
  if (!version || *version == "\xff") return std::nullopt;
  const auto trace_id = part(text, 3, 2 * kTraceBytes);
  const auto span_id = part(text, 36, 2 * kSpanBytes);
  const auto flags = part(text, 53, 2);
  if (!trace_id || !span_id || !flags || all_zero(*trace_id) || all_zero(*span_id)) {
    return std::nullopt;
  }
  // Only a later version may have more behind it.
  if (text.size() > 55 && *version == std::string(1, '\0')) return std::nullopt;
  return TraceContext{*trace_id, *span_id, (flags->front() & 1) != 0};
}

std::vector<Span> spans_of(const CallEnd& call, Moment now, const Random& random) {
  std::optional<TraceContext> parent;
  if (call.notes != nullptr) parent = parse_traceparent(call.notes->traceparent);
  if (parent && !parent->sampled) return {};
  std::vector<Span> spans{root_of(call, now)};
  Span& root = spans.front();
  root.set_trace_id(parent ? parent->trace_id : random_bytes(kTraceBytes, random));
  if (parent) root.set_parent_span_id(parent->span_id);
  root.set_span_id(random_bytes(kSpanBytes, random));
  if (call.notes != nullptr && call.notes->timeline) add_steps(call, now, random, spans);
  return spans;
}

}  // namespace kuasar::otlp
