#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kuasar::test {

/// Undoes one planted leak when it goes out of scope, also when an assertion throws in between.
class Planted {
 public:
  Planted(std::string sought, std::function<void()> undo)
      : sought_(std::move(sought)), undo_(std::move(undo)) {}
  Planted(Planted&& other) noexcept
      : sought_(std::move(other.sought_)), undo_(std::exchange(other.undo_, nullptr)) {}
  Planted& operator=(Planted&&) = delete;
  ~Planted() { remove(); }

  /// What a line of the census must contain to have found it.
  const std::string& sought() const { return sought_; }
  void remove();

 private:
  std::string sought_;
  std::function<void()> undo_;
};

/// A child process that stands for the daemon and leaks on command. It is forked by the (single
/// threaded) test, ends when the test closes its pipe, and takes what it leaked along.
class LeakyDaemon {
 public:
  enum class Leak : char {
    kChild = 'c',
    kZombie = 'z',
    kPipe = 'p',
    kThread = 't',
    kSocketPair = 's',
    kNamespaceFd = 'n',
    /// An orphan with a UTS namespace of its own, and one that works in the directory given.
    kOrphanInNamespace = 'o',
    kOrphanInDir = 'd',
  };

  explicit LeakyDaemon(const std::filesystem::path& dir);
  ~LeakyDaemon();
  LeakyDaemon(const LeakyDaemon&) = delete;
  LeakyDaemon& operator=(const LeakyDaemon&) = delete;

  pid_t pid() const { return pid_; }
  /// Returns the pid of the process that was made, or the thread's id, else 0.
  pid_t leak(Leak leak);
  /// Ends the children, reaps them, closes the fds, ends the thread.
  void make_good();

 private:
  pid_t command(char letter);

  pid_t pid_ = 0;
  int commands_ = -1;
  int answers_ = -1;
};

/// A temporary directory of its own name below /tmp, removed with what is in it.
class ScratchDir {
 public:
  ScratchDir();
  ~ScratchDir();
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// One of each kind that needs no process. Each throws std::system_error when the kernel refuses.
Planted plant_mount(const std::filesystem::path& dir);
Planted plant_cgroup(const std::filesystem::path& hierarchy);
Planted plant_file(const std::filesystem::path& file);
Planted plant_fifo(const std::filesystem::path& file);
Planted plant_namespace_pin(const std::filesystem::path& file);
Planted plant_unix_socket(const std::filesystem::path& file);
Planted plant_veth();

/// The mount points of all cgroup hierarchies, v1 and v2.
std::vector<std::filesystem::path> cgroup_hierarchies();

}  // namespace kuasar::test
