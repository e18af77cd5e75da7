#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::daemon {

/// A listening Unix stream socket and its file. The file is removed with the object, but only
/// while it is still the one that was made: a successor's socket is never taken away.
class Listener {
 public:
  /// Binds and listens (mode 0600 whatever the umask, close-on-exec, non-blocking). A socket
  /// file that nobody listens on is replaced. kFailedPrecondition, in words: a live process owns
  /// the path (it is named by its pid), something else than a socket lies there. A failure leaves
  /// the path as it was.
  static Result<Listener> bind(const std::string& path);

  /// A listening socket that an earlier daemon bound to `path` and somebody held; nothing when it
  /// is bound elsewhere or its file is gone, so that no client could find it.
  static std::optional<Listener> resume(const std::string& path, UniqueFd fd);

  Listener(Listener&& other) noexcept
      : path_(std::exchange(other.path_, {})),
        fd_(std::move(other.fd_)),
        device_(other.device_),
        inode_(other.inode_) {}
  Listener& operator=(Listener&& other) = delete;
  ~Listener() { remove_file(); }

  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }
  /// Hands the socket out; the file stays ours to remove.
  UniqueFd take_fd() { return std::move(fd_); }
  /// Removes the socket's file if it is still ours; again: nothing.
  void remove_file();
  /// Leaves the file where it is for good.
  void keep_file() { path_.clear(); }

 private:
  Listener(std::string path, UniqueFd fd, dev_t device, ino_t inode)
      : path_(std::move(path)), fd_(std::move(fd)), device_(device), inode_(inode) {}

  std::string path_;
  UniqueFd fd_;
  dev_t device_;
  ino_t inode_;
};

/// Makes sure that one daemon works on a state directory: an exclusive lock (flock(2)) on `file`
/// that ends with the process. kFailedPrecondition names the file and the pid that holds it.
Result<UniqueFd> lock_state_dir(const std::string& file);

}  // namespace kuasar::daemon
