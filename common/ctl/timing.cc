#include "ctl/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cmath>
#include <vector>

#include "ctl/print.h"
#include "kuasar/ctl/v1/ctl.pb.h"

namespace kuasar::ctl {
namespace {

namespace json = boost::json;

constexpr std::size_t kBar = 40;

/// The timeline of a pod or container, under its name.
struct Named {
  std::string what;
  std::string id;
  const v1::Timeline* timeline;
};

std::vector<Named> timelines_of(const v1::Pod& pod) {
  const auto& metadata = pod.state().config().metadata();
  std::vector<Named> all;
  all.push_back({fmt::format("pod {}/{}", metadata.namespace_(), metadata.name()), pod.state().id(),
                 pod.has_timeline() ? &pod.timeline() : nullptr});
  for (const v1::Container& container : pod.containers()) {
    all.push_back({"container " + container.name(), container.state().id(),
                   container.has_timeline() ? &container.timeline() : nullptr});
  }
  // Containers come in the order of their ids; they began in another.
  std::stable_sort(all.begin() + 1, all.end(), [](const Named& a, const Named& b) {
    if (a.timeline == nullptr || b.timeline == nullptr) return a.timeline < b.timeline;
    const auto& at = a.timeline->begun_at();
    const auto& bt = b.timeline->begun_at();
    return at.seconds() != bt.seconds() ? at.seconds() < bt.seconds() : at.nanos() < bt.nanos();
  });
  return all;
}

double ms(std::int64_t nanoseconds) {
  return static_cast<double>(nanoseconds) / 1e6;
}

double wall_ms(const v1::Timeline& timeline) {
  return static_cast<double>(timeline.begun_at().seconds()) * 1e3 + ms(timeline.begun_at().nanos());
}

// Of what is under way: until the last moment that is known.
std::int64_t last_moment(const v1::Timeline& timeline) {
  std::int64_t last = 0;
  for (const v1::Timeline::Span& span : timeline.spans()) {
    last = std::max({last, span.begin_ns(), span.end_ns()});
  }
  return last;
}

std::string bar(const v1::Timeline::Span& span, std::int64_t whole) {
  if (whole <= 0) return {};
  const auto place = [&](std::int64_t at) {
    return static_cast<std::size_t>(static_cast<double>(at) / static_cast<double>(whole) *
                                    static_cast<double>(kBar));
  };
  const std::int64_t end = span.end_ns() < 0 ? whole : span.end_ns();
  const std::size_t from = std::min(place(span.begin_ns()), kBar - 1);
  const std::size_t to = std::clamp(place(end), from + 1, kBar);
  return std::string(from, ' ') + std::string(to - from, span.wait() ? '.' : '#');
}

// Between two calls of containerd's the start is in nobody's hands but its own.
v1::Timeline::Span between(std::int64_t from, std::int64_t to) {
  v1::Timeline::Span span;
  span.set_name("containerd");
  span.set_wait(true);
  span.set_begin_ns(from);
  span.set_end_ns(to);
  return span;
}

std::vector<v1::Timeline::Span> with_gaps(const v1::Timeline& timeline) {
  std::vector<v1::Timeline::Span> all;
  std::int64_t covered = 0;
  for (const v1::Timeline::Span& span : timeline.spans()) {
    if (span.depth() == 0) {
      if (!all.empty() && covered >= 0 && span.begin_ns() > covered) {
        all.push_back(between(covered, span.begin_ns()));
      }
      covered = span.end_ns();
    }
    all.push_back(span);
  }
  return all;
}

std::string took(const v1::Timeline::Span& span) {
  if (span.end_ns() < 0) return "under way";
  return fmt::format("{:.3f}", ms(span.end_ns() - span.begin_ns()));
}

std::string timeline_table(const v1::Timeline& timeline) {
  const std::int64_t whole = last_moment(timeline);
  std::vector<std::vector<std::string>> rows;
  for (const v1::Timeline::Span& span : with_gaps(timeline)) {
    rows.push_back({fmt::format("{:9.3f}", ms(span.begin_ns())), fmt::format("{:>9}", took(span)),
                    std::string(2 * std::min<std::size_t>(span.depth(), 8), ' ') +
                        (span.wait() ? "wait: " : "") + span.name(),
                    bar(span, whole)});
  }
  std::string text = table({"   AT MS", "  TOOK MS", "WHAT", "WHERE (# step, . wait)"}, rows);
  if (timeline.dropped() > 0) text += fmt::format("and {} spans more\n", timeline.dropped());
  return text;
}

json::array spans_json(const v1::Timeline& timeline) {
  json::array spans;
  for (const v1::Timeline::Span& span : with_gaps(timeline)) {
    json::object one;
    one["name"] = span.name();
    one["wait"] = span.wait();
    one["depth"] = span.depth();
    one["begin_ms"] = ms(span.begin_ns());
    if (span.end_ns() >= 0) one["took_ms"] = ms(span.end_ns() - span.begin_ns());
    spans.push_back(std::move(one));
  }
  return spans;
}

}  // namespace

std::string timing_text(const v1::Pod& pod) {
  const std::vector<Named> all = timelines_of(pod);
  std::string text;
  for (const Named& one : all) {
    if (!text.empty()) text += "\n";
    text += fmt::format("{} ({})", one.what, short_id(one.id));
    if (one.timeline == nullptr) {
      text += ": no timeline, an earlier daemon started it\n";
      continue;
    }
    if (&one != &all.front() && all.front().timeline != nullptr) {
      text += fmt::format(", {:.1f} ms after the pod",
                          wall_ms(*one.timeline) - wall_ms(*all.front().timeline));
    }
    text += "\n" + timeline_table(*one.timeline);
  }
  return text;
}

json::value timing_json(const v1::Pod& pod) {
  json::array timelines;
  for (const Named& one : timelines_of(pod)) {
    json::object object;
    object["what"] = one.what;
    object["id"] = one.id;
    if (one.timeline != nullptr) {
      object["begun_at_ms"] = std::round(wall_ms(*one.timeline) * 1e3) / 1e3;
      object["spans"] = spans_json(*one.timeline);
      object["dropped"] = one.timeline->dropped();
    }
    timelines.push_back(std::move(object));
  }
  return json::object{{"pod", pod.state().id()}, {"timelines", std::move(timelines)}};
}

}  // namespace kuasar::ctl
