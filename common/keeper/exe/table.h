#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string_view>

#include "keeper/wire.h"

namespace kuasar::keeper {

/// A descriptor that is held by name; the name lies behind it.
struct Entry {
  std::uint32_t name_size;
  /// Of a child, its pidfd.
  std::int32_t fd;
  wire::Info info;

  std::string_view name() const { return {reinterpret_cast<const char*>(this + 1), name_size}; }
  /// With the name; the next entry is aligned, too.
  std::size_t size() const { return sizeof *this + (name_size + 7) / 8 * 8; }
  Entry* next() { return reinterpret_cast<Entry*>(reinterpret_cast<char*>(this) + size()); }
  bool is_child() const { return info.pid != 0; }
  bool runs() const { return is_child() && (info.flags & wire::kEnded) == 0; }
  bool accepts() const { return (info.flags & wire::kAccepting) != 0; }
};

/// Everything that is held, entry behind entry: one write hands it to another keeper. There is one
/// Table. Its pages take up memory once they are written to; no entry moves but by a removal.
class Table {
 public:
  // A huge page would be more than a keeper shall take.
  Table() { madvise(memory_, kRoom, MADV_NOHUGEPAGE); }
  Entry* begin() const { return reinterpret_cast<Entry*>(memory_); }
  Entry* end() const { return reinterpret_cast<Entry*>(memory_ + used_); }

  bool full() const { return used_ + sizeof(Entry) + wire::kMaxName + 1 > kRoom; }
  /// Null when the table is full.
  Entry* add(std::string_view name, int fd, const wire::Info& info) {
    if (full()) return nullptr;
    Entry* entry = end();
    *entry = {static_cast<std::uint32_t>(name.size()), fd, info};
    std::memcpy(entry + 1, name.data(), name.size());
    used_ += entry->size();
    return entry;
  }
  void remove(Entry& entry) {
    char* const next = reinterpret_cast<char*>(entry.next());
    const auto behind = static_cast<std::size_t>(memory_ + used_ - next);
    used_ -= entry.size();
    std::memmove(&entry, next, behind);
  }
  /// Children and other descriptors may have the same name.
  Entry* find(std::string_view name, bool child) const {
    for (Entry* entry = begin(); entry != end(); entry = entry->next()) {
      if (entry->is_child() == child && entry->name() == name) return entry;
    }
    return nullptr;
  }
  Entry* find(int fd) const {
    for (Entry* entry = begin(); entry != end(); entry = entry->next()) {
      if (entry->fd == fd) return entry;
    }
    return nullptr;
  }

  Entry* find_child(std::int32_t pid) const {
    for (Entry* entry = begin(); entry != end(); entry = entry->next()) {
      if (entry->info.pid == pid) return entry;
    }
    return nullptr;
  }

  std::string_view bytes() const { return {memory_, used_}; }
  /// The bytes() of another keeper, up to the file's end; false when they are no table.
  bool read(int file, off_t offset) {
    const ssize_t size = pread(file, memory_, kRoom, offset);
    for (used_ = 0; static_cast<ssize_t>(used_) < size;) used_ += end()->size();
    return static_cast<ssize_t>(used_) == size;
  }

 private:
  static constexpr std::size_t kRoom = 16 * 1024 * 1024;

  alignas(4096) static inline char memory_[kRoom];
  std::size_t used_ = 0;
};

}  // namespace kuasar::keeper
