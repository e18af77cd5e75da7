#include "sandbox/remove_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "base/unique_fd.h"

namespace kuasar::sandbox {
namespace {

using Path = std::filesystem::path;

Result<std::vector<std::string>> names_in(int dir_fd, const Path& path) {
  // fdopendir(3) takes its descriptor over.
  const int copy = ::fcntl(dir_fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return fail_errno("duplicate", path.native());
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(copy), ::closedir);
  if (!dir) {
    ::close(copy);
    return fail_errno("read", path.native());
  }
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) {
      if (errno != 0) return fail_errno("read", path.native());
      return names;
    }
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
}

Result<> remove_entry(int dir_fd, const std::string& name, const Path& path);

Result<> remove_names(int dir_fd, const Path& path, const std::string& last, bool take_last) {
  TRY(const std::vector<std::string> names, names_in(dir_fd, path));
  Result<> first_failure;
  bool has_last = false;
  for (const std::string& name : names) {
    if (name == last) {
      has_last = true;
      continue;
    }
    Result<> removed = remove_entry(dir_fd, name, path / name);
    if (!removed && first_failure) first_failure = std::move(removed);
  }
  if (has_last && take_last && first_failure) return remove_entry(dir_fd, last, path / last);
  return first_failure;
}

// True for the root of a mount. The attribute is new in Linux 5.8; before that the device number
// tells all mounts of our tree apart, because none of them is a bind mount of the same tmpfs.
bool is_mount(const struct statx& entry, const struct statx& parent) {
  if ((entry.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) != 0) {
    return (entry.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
  }
  return entry.stx_dev_major != parent.stx_dev_major || entry.stx_dev_minor != parent.stx_dev_minor;
}

Result<> remove_entry(int dir_fd, const std::string& name, const Path& path) {
  struct statx parent {};
  struct statx entry {};
  if (::statx(dir_fd, "", AT_EMPTY_PATH, STATX_TYPE, &parent) != 0 ||
      ::statx(dir_fd, name.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &entry) !=
          0) {
    if (errno == ENOENT) return {};
    return fail_errno("stat", path.native());
  }
  if (is_mount(entry, parent)) {
    return fail(Code::kFailedPrecondition, "{} is still a mount point and is not removed",
                path.native());
  }
  const bool is_dir = S_ISDIR(entry.stx_mode);
  if (is_dir) {
    UniqueFd fd(::openat(dir_fd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) return fail_errno("open", path.native());
    CHECK_OK(remove_names(fd.get(), path, {}, true));
  }
  if (::unlinkat(dir_fd, name.c_str(), is_dir ? AT_REMOVEDIR : 0) != 0 && errno != ENOENT) {
    return fail_errno("remove", path.native());
  }
  return {};
}

}  // namespace

Result<> remove_tree(const Path& dir, const std::string& last) {
  UniqueFd parent(::open(dir.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent) {
    if (errno == ENOENT) return {};
    return fail_errno("open", dir.parent_path().native());
  }
  if (!last.empty()) {
    UniqueFd fd(::openat(parent.get(), dir.filename().c_str(),
                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) {
      if (errno == ENOENT) return {};
      return fail_errno("open", dir.native());
    }
    CHECK_OK(remove_names(fd.get(), dir, last, true));
  }
  return remove_entry(parent.get(), dir.filename().native(), dir);
}

Result<> remove_tree_content(const Path& dir, const std::string& keep) {
  UniqueFd fd(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return fail_errno("open", dir.native());
  return remove_names(fd.get(), dir, keep, false);
}

}  // namespace kuasar::sandbox
