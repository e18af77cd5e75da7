#include "os/detached_mount.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/files.h"

namespace kuasar::os {
namespace {

// Flags of mount(2) and of mount_setattr(2) that mean the same.
constexpr std::pair<unsigned long, std::uint64_t> kAttributes[] = {
    {MS_RDONLY, MOUNT_ATTR_RDONLY},         {MS_NOSUID, MOUNT_ATTR_NOSUID},
    {MS_NODEV, MOUNT_ATTR_NODEV},           {MS_NOEXEC, MOUNT_ATTR_NOEXEC},
    {MS_NODIRATIME, MOUNT_ATTR_NODIRATIME},
};

// One of these, not a set of bits; relatime is 0.
constexpr std::pair<unsigned long, std::uint64_t> kAtimes[] = {
    {MS_RELATIME, MOUNT_ATTR_RELATIME},
    {MS_NOATIME, MOUNT_ATTR_NOATIME},
    {MS_STRICTATIME, MOUNT_ATTR_STRICTATIME},
};

struct Attributes {
  std::uint64_t set = 0;
  std::uint64_t clear = 0;
};

Attributes attributes_of(unsigned long flags) {
  Attributes attributes;
  for (const auto& [flag, attribute] : kAttributes) {
    if ((flags & flag) != 0) attributes.set |= attribute;
  }
  for (const auto& [flag, attribute] : kAtimes) {
    if ((flags & flag) == 0) continue;
    attributes.clear = MOUNT_ATTR__ATIME;
    attributes.set = (attributes.set & ~attributes.clear) | attribute;
  }
  return attributes;
}

Result<> refuse_unknown(const MountPlan& plan) {
  constexpr std::pair<unsigned long, const char*> kOfSuperblocks[] = {{MS_SYNCHRONOUS, "sync"},
                                                                      {MS_DIRSYNC, "dirsync"}};
  for (const auto& [flag, name] : kOfSuperblocks) {
    if ((plan.flags & flag) == 0) continue;
    return fail(Code::kUnimplemented, "the mount option \"{}\" is not supported", name);
  }
  if (!plan.uid_map.empty() || !plan.gid_map.empty()) {
    return fail(Code::kUnimplemented,
                "the mount options \"uidmap\" and \"gidmap\" are not supported");
  }
  if ((plan.flags & MS_BIND) == 0 || plan.data.empty()) return {};
  return fail(Code::kUnimplemented, "the option \"{}\" of a bind mount is not supported",
              plan.data);
}

Result<> set_attributes(int fd, Attributes wanted, std::uint64_t propagation, bool recursive) {
  mount_attr attributes{};
  attributes.attr_set = wanted.set;
  attributes.attr_clr = wanted.clear;
  attributes.propagation = propagation;
  const unsigned flags = AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0);
  if (::mount_setattr(fd, "", flags, &attributes, sizeof attributes) != 0) {
    return fail_errno("mount_setattr");
  }
  return {};
}

// As mountinfo writes a path (proc(5)).
std::string escape_path(const std::string& path) {
  std::string out;
  for (const char c : path) {
    if (c == ' ' || c == '\t' || c == '\n' || c == '\\') {
      out += fmt::format("\\{:03o}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out;
}

// Where a procfs is mounted in our mount namespace, as mountinfo writes it.
Result<std::vector<std::string>> procfs_mounts() {
  TRY(const std::string text, read_file("/proc/self/mountinfo"));
  std::vector<std::string> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" - proc ") == std::string::npos) continue;
    std::istringstream fields(line);
    std::string point;
    for (int i = 0; i < 5; ++i) fields >> point;
    out.push_back(point);
  }
  return out;
}

Result<> refuse_procfs(int source, const MountPlan& plan) {
  struct statfs st {};
  if (::fstatfs(source, &st) != 0) return fail_errno("statfs", plan.source);
  if (st.f_type == PROC_SUPER_MAGIC) {
    return fail(Code::kUnimplemented,
                "{} is of a procfs, which this runtime handler does not mount", plan.source);
  }
  if ((plan.flags & MS_REC) == 0) return {};
  std::error_code ec;
  const std::string path =
      std::filesystem::read_symlink(fmt::format("/proc/self/fd/{}", source), ec);
  if (ec) return fail(Code::kInternal, "read the path of {}: {}", plan.source, ec.message());
  const std::string below = path == "/" ? path : escape_path(path) + "/";
  TRY(const std::vector<std::string> points, procfs_mounts());
  for (const std::string& point : points) {
    if (!point.starts_with(below)) continue;
    return fail(Code::kUnimplemented,
                "{} has a procfs in it ({}), which this runtime handler does not mount; mount "
                "something narrower",
                plan.source, point);
  }
  return {};
}

Result<UniqueFd> clone_tree(const MountPlan& plan, bool recursive_readonly) {
  // What is looked at and what is cloned are the same, whoever changes a link meanwhile.
  const UniqueFd source(::open(plan.source.c_str(), O_PATH | O_CLOEXEC));
  if (!source) return fail_errno("open", plan.source);
  CHECK_OK(refuse_procfs(source.get(), plan));
  const unsigned deep = (plan.flags & MS_REC) != 0 ? AT_RECURSIVE : 0;
  UniqueFd fd(::open_tree(source.get(), "",
                          OPEN_TREE_CLONE | static_cast<unsigned>(OPEN_TREE_CLOEXEC) |
                              static_cast<unsigned>(AT_EMPTY_PATH) | deep));
  if (!fd) return fail_errno("open_tree", plan.source);
  // A copy of a shared mount is its peer: what is mounted below it would be seen on the host.
  std::uint64_t propagation = plan.propagation & ~static_cast<unsigned long>(MS_REC);
  if (propagation == 0) propagation = MS_PRIVATE;
  CHECK_OK(set_attributes(fd.get(), {}, propagation, deep != 0));
  CHECK_OK(set_attributes(fd.get(), {MOUNT_ATTR_NODEV, 0}, 0, true));
  CHECK_OK(set_attributes(fd.get(), attributes_of(plan.flags), 0, false));
  if (recursive_readonly) CHECK_OK(set_attributes(fd.get(), {MOUNT_ATTR_RDONLY, 0}, 0, true));
  return fd;
}

Result<> map_owners(int mount, int user_namespace) {
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_IDMAP;
  attributes.userns_fd = static_cast<std::uint64_t>(user_namespace);
  if (::mount_setattr(mount, "", AT_EMPTY_PATH, &attributes, sizeof attributes) != 0) {
    return fail_errno(
        "map the owners of files (an idmapped mount; does the file system know them?)");
  }
  return {};
}

Result<> set_option(int fs, const std::string& option) {
  const std::size_t equals = option.find('=');
  const int done = equals == std::string::npos
                       ? ::fsconfig(fs, FSCONFIG_SET_FLAG, option.c_str(), nullptr, 0)
                       : ::fsconfig(fs, FSCONFIG_SET_STRING, option.substr(0, equals).c_str(),
                                    option.substr(equals + 1).c_str(), 0);
  if (done != 0) return fail_errno("tmpfs option", option);
  return {};
}

Result<UniqueFd> new_tmpfs(const std::string& data, unsigned long flags) {
  const UniqueFd fs(::fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!fs) return fail_errno("fsopen", "tmpfs");
  std::size_t at = 0;
  while (at < data.size()) {
    const std::size_t end = std::min(data.find(',', at), data.size());
    CHECK_OK(set_option(fs.get(), data.substr(at, end - at)));
    at = end + 1;
  }
  if (::fsconfig(fs.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return fail_errno("make", "a tmpfs");
  }
  UniqueFd fd(
      ::fsmount(fs.get(), FSMOUNT_CLOEXEC, static_cast<unsigned>(attributes_of(flags).set)));
  if (!fd) return fail_errno("fsmount", "tmpfs");
  return fd;
}

}  // namespace

Result<UniqueFd> make_detached_mount(const MountPlan& plan, bool recursive_readonly,
                                     int user_namespace) {
  CHECK_OK(refuse_unknown(plan));
  if ((plan.flags & MS_BIND) != 0) {
    TRY(UniqueFd tree, clone_tree(plan, recursive_readonly));
    if (user_namespace >= 0) CHECK_OK(map_owners(tree.get(), user_namespace));
    return tree;
  }
  if (user_namespace >= 0) {
    return fail(Code::kUnimplemented, "an idmapped mount of type {} is not supported", plan.type);
  }
  if (plan.type == "tmpfs") return new_tmpfs(plan.data, plan.flags | MS_NODEV);
  return fail(Code::kUnimplemented, "a mount of type {} is not supported", plan.type);
}

Result<UniqueFd> make_device_dir() {
  constexpr std::pair<const char*, unsigned> kMemoryDevices[] = {
      {"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}};
  constexpr unsigned kMemoryMajor = 1;
  TRY(UniqueFd dir, new_tmpfs("mode=755,size=65536k", MS_NOSUID | MS_NOEXEC));
  for (const auto& [name, number] : kMemoryDevices) {
    if (::mknodat(dir.get(), name, S_IFCHR | 0666, makedev(kMemoryMajor, number)) != 0 ||
        ::fchmodat(dir.get(), name, 0666, 0) != 0) {
      return fail_errno("make device", name);
    }
  }
  return dir;
}

}  // namespace kuasar::os
