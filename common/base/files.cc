#include "base/files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>

#include "base/unique_fd.h"

namespace kuasar {
namespace {

Result<> write_all(int fd, std::string_view content, const std::string& name) {
  while (!content.empty()) {
    const ssize_t n = ::write(fd, content.data(), content.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return fail_errno("write", name);
    }
    content.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

}  // namespace

Result<std::string> read_file(const std::filesystem::path& path, std::size_t limit) {
  return read_file_at(AT_FDCWD, path, limit);
}

Result<std::string> read_file_at(int dir, const std::filesystem::path& path, std::size_t limit) {
  UniqueFd fd(::openat(dir, path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path.native());
  std::string content;
  char buffer[16384];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      return fail_errno("read", path.native());
    }
    if (n == 0) return content;
    content.append(buffer, static_cast<std::size_t>(n));
    if (content.size() > limit) {
      return fail(Code::kResourceExhausted, "{} is larger than {} bytes", path.native(), limit);
    }
  }
}

Result<> write_file(const std::filesystem::path& path, std::string_view content, mode_t mode) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!fd) return fail_errno("open", path.native());
  return write_all(fd.get(), content, path.native());
}

Result<> write_file_atomic(const std::filesystem::path& path, std::string_view content,
                           mode_t mode) {
  const std::filesystem::path temp =
      path.parent_path() / (std::string(kTempPrefix) + path.filename().native());
  Result<> written = write_file(temp, content, mode);
  if (written && ::rename(temp.c_str(), path.c_str()) != 0) {
    written = fail_errno("rename", path.native());
  }
  if (!written) ::unlink(temp.c_str());
  return written;
}

Result<> make_dir(const std::filesystem::path& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0) {
    if (errno == EEXIST) return {};
    return fail_errno("mkdir", path.native());
  }
  // The umask must not decide who may pass.
  if (::chmod(path.c_str(), mode) != 0) return fail_errno("chmod", path.native());
  return {};
}

}  // namespace kuasar
