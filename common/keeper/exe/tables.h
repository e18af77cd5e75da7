#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

namespace kuasar::keeper {

/// Memory that grows in steps and never shrinks; all zero where it has not been written.
class Pages {
 public:
  bool reserve(std::size_t size) {
    if (size <= size_) return true;
    const std::size_t wanted = (size + kStep - 1) / kStep * kStep;
    void* at = data_ == nullptr ? mmap(nullptr, wanted, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                                : mremap(data_, size_, wanted, MREMAP_MAYMOVE);
    if (at == MAP_FAILED) return false;
    data_ = static_cast<char*>(at);
    size_ = wanted;
    return true;
  }
  char* data() const { return data_; }

 private:
  static constexpr std::size_t kStep = 64 * 1024;
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A name that an entry owns: where it lies in Names, and enough to compare without looking there.
struct Name {
  std::uint32_t at = 0;
  std::uint32_t hash = 0;
  std::uint32_t size = 0;
};

/// The bytes of all names, in blocks of a multiple of 32; a freed block is used again.
class Names {
 public:
  static std::uint32_t hash(const char* name, std::size_t size) {
    std::uint32_t value = 2166136261U;
    for (std::size_t i = 0; i < size; ++i)
      value = (value ^ static_cast<std::uint8_t>(name[i])) * 16777619U;
    return value;
  }
  bool add(const char* name, std::size_t size, Name& out) {
    std::uint32_t& free_block = free_[(size + kBlock - 1) / kBlock];
    std::uint32_t at = free_block;
    if (at != 0) {
      std::memcpy(&free_block, pages_.data() + at, sizeof free_block);
    } else {
      const auto room = static_cast<std::uint32_t>((size + kBlock - 1) / kBlock * kBlock);
      if (!pages_.reserve(used_ + room)) return false;
      at = used_;
      used_ += room;
    }
    std::memcpy(pages_.data() + at, name, size);
    out = Name{at, hash(name, size), static_cast<std::uint32_t>(size)};
    return true;
  }
  void remove(const Name& name) {
    std::uint32_t& free_block = free_[(name.size + kBlock - 1) / kBlock];
    std::memcpy(pages_.data() + name.at, &free_block, sizeof free_block);
    free_block = name.at;
  }
  const char* text(const Name& name) const { return pages_.data() + name.at; }

 private:
  static constexpr std::size_t kBlock = 32;
  Pages pages_;
  // 0 stands for "none": the first block is never given away.
  std::uint32_t used_ = kBlock;
  std::uint32_t free_[320 / kBlock + 1] = {};
};

/// Entries of one kind, each with a member `Name name`; removal moves the last one.
template <typename T>
class Table {
 public:
  explicit Table(Names& names) : names_(names) {}
  T* add(const char* name, std::size_t size) {
    if (!pages_.reserve((count_ + 1) * sizeof(T))) return nullptr;
    T entry{};
    if (!names_.add(name, size, entry.name)) return nullptr;
    begin()[count_] = entry;
    return begin() + count_++;
  }
  void remove(T* entry) {
    names_.remove(entry->name);
    *entry = begin()[--count_];
  }
  T* find(const char* name, std::size_t size) const {
    const std::uint32_t hash = Names::hash(name, size);
    for (T& entry : *this) {
      if (entry.name.hash == hash && entry.name.size == size &&
          std::memcmp(names_.text(entry.name), name, size) == 0)
        return &entry;
    }
    return nullptr;
  }
  T* find_fd(int fd) const {
    for (T& entry : *this) {
      if (entry.fd == fd) return &entry;
    }
    return nullptr;
  }
  T* begin() const { return reinterpret_cast<T*>(pages_.data()); }
  T* end() const { return begin() + count_; }
  std::size_t count() const { return count_; }

 private:
  Names& names_;
  Pages pages_;
  std::size_t count_ = 0;
};

}  // namespace kuasar::keeper
