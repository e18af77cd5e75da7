#pragma once

#include <sys/mount.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <utility>

namespace kuasar::test {

/// A tmpfs of its own for as long as this lives, with its propagation and with what lies below it.
class Tmpfs {
 public:
  explicit Tmpfs(std::filesystem::path dir, unsigned long propagation = MS_PRIVATE)
      : dir_(std::move(dir)) {
    std::filesystem::create_directories(dir_);
    REQUIRE(::mount("tmpfs", dir_.c_str(), "tmpfs", 0, "mode=755") == 0);
    REQUIRE(::mount(nullptr, dir_.c_str(), nullptr, propagation, nullptr) == 0);
  }
  ~Tmpfs() { ::umount2(dir_.c_str(), MNT_DETACH); }
  Tmpfs(const Tmpfs&) = delete;
  Tmpfs& operator=(const Tmpfs&) = delete;

  const std::filesystem::path& path() const { return dir_; }

 private:
  std::filesystem::path dir_;
};

}  // namespace kuasar::test
