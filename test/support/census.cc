#include "support/census.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include "support/census_parts.h"

namespace kuasar::test {
namespace {

using ItemsByKey = std::map<std::pair<std::string, std::string>, std::vector<const CensusItem*>>;

ItemsByKey group(const std::vector<CensusItem>& items) {
  ItemsByKey groups;
  for (const CensusItem& item : items) {
    groups[{item.kind, item.key}].push_back(&item);
  }
  return groups;
}

// Objects that come and go without a leak, up to a limit. `key` is a pattern of fnmatch(3).
struct Elastic {
  const char* kind;
  const char* key;
  std::size_t limit;
};

// Rules 4 and 6 of census.h. gRPC 1.51's default and resolver executors, timer and poller threads
// start on first use and end when idle; their number follows the cores and the load, not what the
// daemon holds.
constexpr Elastic kElastic[] = {{"thread", "grpc*", 16},
                                {"thread", "default-executo*", 8},
                                {"thread", "resolver-execut*", 8},
                                {"thread", "event_engine*", 8},
                                {"thread", "nexting_thread*", 8},
                                {"thread", "timer_manager*", 4},
                                {"fd", "daemon /proc/self/statm", 1},
                                {"fd", "daemon /proc/self/smaps", 1}};

std::size_t elastic_limit(const std::string& kind, const std::string& key) {
  for (const Elastic& one : kElastic) {
    if (kind == one.kind && ::fnmatch(one.key, key.c_str(), 0) == 0) {
      return one.limit;
    }
  }
  return 0;
}

// The items of `many` that are more than there are in `few`; among equals, those whose words do
// not occur in `few` are named first, since these are the ones that a reader can go and look at.
std::vector<const CensusItem*> surplus(const std::vector<const CensusItem*>& many,
                                       const std::vector<const CensusItem*>& few) {
  std::multiset<std::string_view> known;
  for (const CensusItem* item : few) {
    known.insert(item->words);
  }
  std::vector<const CensusItem*> fresh;
  std::vector<const CensusItem*> seen;
  for (const CensusItem* item : many) {
    const auto found = known.find(item->words);
    if (found == known.end()) {
      fresh.push_back(item);
    } else {
      known.erase(found);
      seen.push_back(item);
    }
  }
  fresh.insert(fresh.end(), seen.begin(), seen.end());
  fresh.resize(many.size() - few.size());
  return fresh;
}

bool worth_a_line_when_new(const CensusItem& item, const std::set<std::string>& known_origins) {
  switch (item.standing) {
    case CensusStanding::kOurs:
    case CensusStanding::kUnowned: return true;
    case CensusStanding::kAdrift:
      return item.origin.empty() || !known_origins.contains(item.origin);
    case CensusStanding::kForeign: return false;
  }
  return true;
}

}  // namespace

Census Census::take(const CensusScope& scope) {
  const census::ProcessTable processes(scope);
  Census taken;
  census::add_processes(processes, taken.items_);
  census::add_files_and_threads(scope, processes, taken.items_);
  census::add_mounts(scope, processes, taken.items_);
  census::add_cgroups(processes, taken.items_);
  census::add_unix_sockets(scope, processes, taken.items_);
  census::add_links(processes, taken.items_);
  census::add_tree(scope, taken.items_);
  census::add_netns_files(scope, taken.items_);
  return taken;
}

Census Census::take_settled(const CensusScope& scope) {
  constexpr std::chrono::milliseconds kQuiet(100);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  Census settled = take(scope);
  auto since = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() < end &&
         std::chrono::steady_clock::now() - since < kQuiet) {
    std::this_thread::sleep_for(kQuiet / 4);
    Census next = take(scope);
    if (!diff(settled, next).empty()) {
      settled = std::move(next);
      since = std::chrono::steady_clock::now();
    }
  }
  return settled;
}

std::vector<std::string> Census::diff(const Census& before, const Census& after) {
  std::set<std::string> known_origins;
  for (const CensusItem& item : before.items_) {
    if (item.kind == "process") {
      known_origins.insert(item.key);
    }
  }
  const ItemsByKey old_groups = group(before.items_);
  const ItemsByKey new_groups = group(after.items_);
  const std::vector<const CensusItem*> none;

  std::vector<std::string> lines;
  for (const auto& [key, items] : new_groups) {
    const auto old = old_groups.find(key);
    const auto& old_items = old == old_groups.end() ? none : old->second;
    if (items.size() <= std::max(old_items.size(), elastic_limit(key.first, key.second))) {
      continue;
    }
    for (const CensusItem* item : surplus(items, old_items)) {
      if (worth_a_line_when_new(*item, known_origins)) {
        lines.push_back(item->kind + " " + item->words);
      }
    }
  }
  for (const auto& [key, items] : old_groups) {
    const auto current = new_groups.find(key);
    const auto& new_items = current == new_groups.end() ? none : current->second;
    if (items.size() <= std::max(new_items.size(), elastic_limit(key.first, key.second))) {
      continue;
    }
    for (const CensusItem* item : surplus(items, new_items)) {
      if (item->standing == CensusStanding::kOurs) {
        lines.push_back("gone: " + item->kind + " " + item->words);
      }
    }
  }
  return lines;
}

std::vector<std::string> Census::wait_equal(const Census& before, const CensusScope& scope,
                                            std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  std::chrono::milliseconds pause(5);
  for (;;) {
    std::vector<std::string> lines = diff(before, take(scope));
    if (lines.empty() || std::chrono::steady_clock::now() >= end) {
      return lines;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(200));
  }
}

std::size_t Census::count(const std::string& kind) const {
  return static_cast<std::size_t>(
      std::count_if(items_.begin(), items_.end(), [&kind](const CensusItem& item) {
        return item.kind == kind && (item.standing == CensusStanding::kOurs ||
                                     item.standing == CensusStanding::kUnowned);
      }));
}

namespace census {

std::string read_text(const std::filesystem::path& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  std::string text;
  if (fd < 0) {
    return text;
  }
  std::array<char, 16384> chunk;
  for (;;) {
    const ssize_t count = ::read(fd, chunk.data(), chunk.size());
    if (count <= 0) {
      break;
    }
    text.append(chunk.data(), static_cast<std::size_t>(count));
  }
  ::close(fd);
  return text;
}

std::string read_symlink(const std::filesystem::path& link) {
  std::array<char, 4096> target;
  const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
  return length < 0 ? std::string() : std::string(target.data(), static_cast<std::size_t>(length));
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      break;
    }
    text.remove_prefix(end + 1);
  }
  return parts;
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> parts;
  for (std::string_view part : split(line, ' ')) {
    if (!part.empty()) {
      parts.push_back(part);
    }
  }
  return parts;
}

bool lies_below(std::string_view path, const std::vector<std::filesystem::path>& dirs) {
  return std::any_of(dirs.begin(), dirs.end(), [path](const std::filesystem::path& dir) {
    const std::string& prefix = dir.native();
    return path.starts_with(prefix) &&
           (path.size() == prefix.size() || path[prefix.size()] == '/' || prefix.ends_with('/'));
  });
}

}  // namespace census
}  // namespace kuasar::test
