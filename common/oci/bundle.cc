#include "oci/bundle.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/ids.h"
#include "base/unique_fd.h"

namespace kuasar::oci {
namespace {

// An id and a newline fit; anything longer is refused.
constexpr std::size_t kMaxIdFile = 256;

Result<> check_path(std::string_view path) {
  if (path.size() >= 4096) {
    return fail(Code::kInvalidArgument, "bundle: the path has {} characters", path.size());
  }
  if (!path.starts_with('/')) {
    return fail(Code::kInvalidArgument, "bundle: \"{}\" is not an absolute path", path);
  }
  if (path.find('\0') != path.npos) {
    return fail(Code::kInvalidArgument, "bundle: the path holds a NUL byte");
  }
  if (path.find("/../") != path.npos || path.ends_with("/..")) {
    return fail(Code::kInvalidArgument, "bundle: \"{}\" holds \"..\"", path);
  }
  return {};
}

// O_NONBLOCK: something other than a regular file must not make us wait before we see that.
Result<std::string> read_member(int dir, const char* name, std::size_t limit) {
  UniqueFd fd(::openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) return fail_errno("open", name);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return fail_errno("stat", name);
  if (!S_ISREG(st.st_mode)) {
    return fail(Code::kInvalidArgument, "{} is not a regular file", name);
  }
  std::string content;
  char buffer[16384];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("read", name);
    if (n == 0) return content;
    content.append(buffer, static_cast<std::size_t>(n));
    if (content.size() > limit) {
      return fail(Code::kResourceExhausted, "{} is larger than {} bytes", name, limit);
    }
  }
}

std::string_view trim(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

Result<std::string> read_sandbox_id(int dir) {
  Result<std::string> content = read_member(dir, "sandbox", kMaxIdFile);
  if (!content && content.error().err == ENOENT) {
    return fail(Code::kFailedPrecondition,
                "no file \"sandbox\": the container belongs to no pod; this runtime handler "
                "serves containers of pods (CRI) only");
  }
  if (!content) return fail(std::move(content).error());
  std::string id(trim(*content));
  CHECK_OK(validate_id("sandbox id", id));
  return id;
}

Result<Bundle> read_bundle(const std::string& path) {
  UniqueFd dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!dir) return fail_errno("open");
  TRY(std::string sandbox_id, read_sandbox_id(dir.get()));
  TRY(const std::string config, read_member(dir.get(), "config.json", kMaxSpecBytes));
  TRY(Spec spec, Spec::parse(config));
  return Bundle{path, std::move(sandbox_id), std::move(spec)};
}

}  // namespace

Result<Bundle> open_bundle(std::string_view path) {
  CHECK_OK(check_path(path));
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  Result<Bundle> bundle = read_bundle(std::string(path));
  if (!bundle) return fail(std::move(bundle).error().context("bundle {}", path));
  return bundle;
}

}  // namespace kuasar::oci
