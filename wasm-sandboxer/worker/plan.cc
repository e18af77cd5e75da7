#include "worker/plan.h"

#include <cstring>
#include <type_traits>

namespace kuasar::wasm {
namespace {

constexpr std::uint32_t kMagic = 0x354d5357;
// A list of a plan that the daemon wrote is shorter; what is not is no plan.
constexpr std::uint32_t kMaxList = 1U << 20;

class Writer {
 public:
  static constexpr bool kReads = false;

  bool operator()(const std::string& text) {
    number(static_cast<std::uint32_t>(text.size()));
    out_ += text;
    return true;
  }
  template <typename T>
  requires std::is_arithmetic_v<T>
  bool operator()(const T& value) {
    number(value);
    return true;
  }
  template <typename T, typename F>
  bool list(const std::vector<T>& items, F each) {
    number(static_cast<std::uint32_t>(items.size()));
    for (const T& item : items) each(*this, item);
    return true;
  }
  std::string take() { return std::move(out_); }

 private:
  template <typename T>
  void number(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string out_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  bool operator()(std::string& text) {
    std::uint32_t size = 0;
    if (!number(size) || size > left_.size()) return false;
    text.assign(left_.substr(0, size));
    left_.remove_prefix(size);
    return true;
  }
  bool operator()(bool& value) {
    char byte = 0;
    if (!number(byte)) return false;
    value = byte != 0;
    return true;
  }
  template <typename T>
  requires std::is_arithmetic_v<T>
  bool operator()(T& value) { return number(value); }
  template <typename T, typename F>
  bool list(std::vector<T>& items, F each) {
    std::uint32_t count = 0;
    if (!number(count) || count > kMaxList) return false;
    for (std::uint32_t i = 0; i < count; ++i) {
      T item{};
      if (!each(*this, item)) return false;
      items.push_back(std::move(item));
    }
    return true;
  }
  bool at_end() const { return left_.empty(); }

 private:
  template <typename T>
  bool number(T& value) {
    if (left_.size() < sizeof value) return false;
    std::memcpy(&value, left_.data(), sizeof value);
    left_.remove_prefix(sizeof value);
    return true;
  }
  std::string_view left_;
};

// One order for both ways.
template <typename IO, typename P>
bool visit(IO& io, P& plan) {
  const auto plain = [](IO& inner, auto& item) { return inner(item); };
  const auto mount = [](IO& inner, auto& item) {
    return inner(item.fd) && inner(item.target) && inner(item.directory);
  };
  const auto limit = [](IO& inner, auto& item) {
    return inner(item.resource) && inner(item.soft) && inner(item.hard);
  };
  const auto preopen = [](IO& inner, auto& item) {
    return inner(item.guest) && inner(item.host) && inner(item.readonly);
  };
  return io(plan.module) && io(plan.function) && io.list(plan.args, plain) &&
         io.list(plan.env, plain) && io(plan.cwd) && io.list(plan.preopens, preopen) &&
         io(plan.uid) && io(plan.gid) && io.list(plan.groups, plain) && io(plan.umask) &&
         io.list(plan.limits, limit) && io(plan.memory_pages) && io(plan.root) &&
         io(plan.root_readonly) && io.list(plan.mounts, mount) && io.list(plan.namespaces, plain) &&
         io(plan.user_namespace) && io.list(plan.cgroups, plain) && io(plan.unified_cgroup) &&
         io(plan.held) && io(plan.streams[0]) && io(plan.streams[1]) && io(plan.streams[2]) &&
         io(plan.terminal) && io(plan.cache) && io(plan.source) && io(plan.code) &&
         io(plan.zygote_of);
}

}  // namespace

std::string encode(const Plan& plan) {
  Writer writer;
  writer(kMagic);
  visit(writer, plan);
  return writer.take();
}

bool decode(std::string_view bytes, Plan& plan) {
  Reader reader(bytes);
  std::uint32_t magic = 0;
  return reader(magic) && magic == kMagic && visit(reader, plan) && reader.at_end();
}

bool is_digest(std::string_view text) {
  constexpr std::size_t kSize = 64;
  return text.size() == kSize &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string encode(const Readiness& readiness) {
  if (readiness.digest.empty()) return "";
  return (readiness.native ? "+" : "-") + readiness.digest;
}

Readiness decode_readiness(std::string_view words) {
  const bool native = words.starts_with('+');
  if (!native && !words.starts_with('-')) return {};
  words.remove_prefix(1);
  if (!is_digest(words)) return {};
  return {std::string(words), native};
}

std::pair<std::string, std::string> split_module(const std::string& word) {
  const std::size_t hash = word.rfind('#');
  if (hash == std::string::npos) return {word, ""};
  return {word.substr(0, hash), word.substr(hash + 1)};
}

}  // namespace kuasar::wasm
