#include "os/packed_paths.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

namespace kuasar::os {
namespace {

using Lengths = std::array<std::uint16_t, 3>;

std::uint16_t length(std::size_t size) {
  return static_cast<std::uint16_t>(
      std::min<std::size_t>(size, std::numeric_limits<std::uint16_t>::max()));
}

}  // namespace

PackedPaths::PackedPaths(const std::vector<std::string>& paths) {
  std::string before;
  for (const std::string& path : paths) {
    const std::size_t most = std::min(path.size(), before.size());
    const auto differs = std::mismatch(path.begin(), path.begin() + most, before.begin()).first;
    const std::uint16_t front = length(differs - path.begin());
    const auto from_end =
        std::mismatch(path.rbegin(), path.rbegin() + (most - front), before.rbegin()).first;
    const std::uint16_t back = length(from_end - path.rbegin());
    const Lengths lengths{front, back, length(path.size() - front - back)};
    bytes_.append(reinterpret_cast<const char*>(lengths.data()), sizeof lengths);
    bytes_.append(path, front, lengths[2]);
    before = path;
  }
  bytes_.shrink_to_fit();
}

std::vector<std::string> PackedPaths::paths() const {
  std::vector<std::string> all;
  std::string before;
  for (std::size_t at = 0; at < bytes_.size();) {
    Lengths lengths{};
    std::memcpy(lengths.data(), bytes_.data() + at, sizeof lengths);
    at += sizeof lengths;
    std::string path = before.substr(0, lengths[0]) + bytes_.substr(at, lengths[2]) +
                       before.substr(before.size() - lengths[1]);
    at += lengths[2];
    all.push_back(path);
    before = std::move(path);
  }
  return all;
}

}  // namespace kuasar::os
