#include "os/mount.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <string_view>

#include "os/idmap.h"
#include "os/own_thread.h"

namespace kuasar::os {
namespace {

// mount(2) copies one page of option data.
constexpr std::size_t kMaxMountData = 4095;

constexpr std::string_view kUidMap = "uidmap=";
constexpr std::string_view kGidMap = "gidmap=";

struct Flag {
  unsigned long bit;
  bool clear;
};

const std::map<std::string_view, Flag>& flag_options() {
  static const std::map<std::string_view, Flag> table = {
      {"defaults", {0, false}},
      {"ro", {MS_RDONLY, false}},
      {"rw", {MS_RDONLY, true}},
      {"nosuid", {MS_NOSUID, false}},
      {"suid", {MS_NOSUID, true}},
      {"nodev", {MS_NODEV, false}},
      {"dev", {MS_NODEV, true}},
      {"noexec", {MS_NOEXEC, false}},
      {"exec", {MS_NOEXEC, true}},
      {"sync", {MS_SYNCHRONOUS, false}},
      {"async", {MS_SYNCHRONOUS, true}},
      {"dirsync", {MS_DIRSYNC, false}},
      {"noatime", {MS_NOATIME, false}},
      {"atime", {MS_NOATIME, true}},
      {"nodiratime", {MS_NODIRATIME, false}},
      {"diratime", {MS_NODIRATIME, true}},
      {"relatime", {MS_RELATIME, false}},
      {"norelatime", {MS_RELATIME, true}},
      {"strictatime", {MS_STRICTATIME, false}},
      {"bind", {MS_BIND, false}},
      {"rbind", {MS_BIND | MS_REC, false}},
  };
  return table;
}

unsigned long propagation_of(std::string_view option) {
  if (option == "private") return MS_PRIVATE;
  if (option == "rprivate") return MS_PRIVATE | MS_REC;
  if (option == "shared") return MS_SHARED;
  if (option == "rshared") return MS_SHARED | MS_REC;
  if (option == "slave") return MS_SLAVE;
  if (option == "rslave") return MS_SLAVE | MS_REC;
  return 0;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t at = 0;
  for (;;) {
    const std::size_t end = text.find(separator, at);
    parts.push_back(text.substr(at, end - at));
    if (end == std::string::npos) return parts;
    at = end + 1;
  }
}

}  // namespace

Result<MountPlan> plan_mount(const MountSpec& spec) {
  MountPlan plan;
  plan.type = spec.type;
  plan.source = spec.source;
  if (spec.type == "bind") plan.flags |= MS_BIND;
  for (const std::string& option : spec.options) {
    if (option.empty() || option.rfind("X-containerd.", 0) == 0) continue;
    if (option.rfind("loop", 0) == 0) {
      return fail(Code::kUnimplemented, "rootfs mount option \"{}\" is not supported", option);
    }
    if (option.rfind(kUidMap, 0) == 0) {
      plan.uid_map = option.substr(kUidMap.size());
      continue;
    }
    if (option.rfind(kGidMap, 0) == 0) {
      plan.gid_map = option.substr(kGidMap.size());
      continue;
    }
    const auto flag = flag_options().find(option);
    if (flag != flag_options().end()) {
      if (flag->second.clear) {
        plan.flags &= ~flag->second.bit;
      } else {
        plan.flags |= flag->second.bit;
      }
    } else if (const unsigned long propagation = propagation_of(option); propagation != 0) {
      plan.propagation = propagation;
    } else {
      if (!plan.data.empty()) plan.data += ',';
      plan.data += option;
    }
  }
  if (plan.uid_map.empty() != plan.gid_map.empty()) {
    return fail(Code::kInvalidArgument, "rootfs mount options uidmap= and gidmap= go together");
  }
  if ((plan.flags & MS_BIND) != 0) {
    plan.type.clear();
    plan.bind_remount = (plan.flags & ~(static_cast<unsigned long>(MS_BIND) | MS_REC)) != 0;
  }
  return plan;
}

Result<ShortenedOverlay> shorten_overlay(const std::string& data) {
  constexpr std::string_view kKey = "lowerdir=";
  std::vector<std::string> options = split(data, ',');
  const auto lower = std::find_if(options.begin(), options.end(), [&](const std::string& option) {
    return option.rfind(kKey, 0) == 0;
  });
  if (lower == options.end()) {
    return fail(Code::kInvalidArgument, "overlay options are too long and have no lowerdir");
  }
  const std::vector<std::string> dirs = split(lower->substr(kKey.size()), ':');
  std::string common = dirs.front().substr(0, dirs.front().rfind('/') + 1);
  for (const std::string& dir : dirs) {
    while (dir.rfind(common, 0) != 0 || dir.size() == common.size()) {
      const std::size_t slash =
          common.size() < 2 ? std::string::npos : common.rfind('/', common.size() - 2);
      if (slash == std::string::npos) {
        return fail(Code::kInvalidArgument, "overlay lower directories share no parent");
      }
      common.resize(slash + 1);
    }
  }
  std::string joined(kKey);
  for (const std::string& dir : dirs) {
    if (&dir != &dirs.front()) joined += ':';
    joined += dir.substr(common.size());
  }
  *lower = joined;
  ShortenedOverlay result;
  result.directory = common;
  for (const std::string& option : options) {
    if (!result.data.empty()) result.data += ',';
    result.data += option;
  }
  if (result.data.size() > kMaxMountData) {
    return fail(Code::kResourceExhausted,
                "overlay options have {} bytes even when shortened, the kernel takes {}; the image "
                "has too many layers",
                result.data.size(), kMaxMountData);
  }
  return result;
}

Result<> mount_planned(const MountPlan& plan, const std::string& target) {
  std::string data = plan.data;
  if (data.size() > kMaxMountData) {
    if (plan.type != "overlay") {
      return fail(Code::kInvalidArgument, "mount options of {} are longer than {} bytes", plan.type,
                  kMaxMountData);
    }
    TRY(const ShortenedOverlay shorter, shorten_overlay(data));
    // The working directory belongs to the whole process: a thread with its own does it.
    CHECK_OK(run_in_own_thread([&]() -> Result<> {
      if (::unshare(CLONE_FS) != 0) return fail_errno("unshare", "CLONE_FS");
      if (::chdir(shorter.directory.c_str()) != 0) return fail_errno("chdir", shorter.directory);
      return mount(plan.source, target, plan.type, plan.flags, shorter.data);
    }));
  } else {
    CHECK_OK(mount(plan.source, target, plan.type, plan.flags, data));
  }
  return finish_mount(plan, target);
}

Result<> finish_mount(const MountPlan& plan, const std::string& target) {
  if (plan.bind_remount) {
    Result<> remounted = mount("", target, "", plan.flags | MS_REMOUNT, "");
    if (!remounted) {
      ::umount2(target.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
      return remounted;
    }
  }
  if (plan.propagation != 0) {
    Result<> changed = mount("", target, "", plan.propagation, "");
    if (!changed) {
      ::umount2(target.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
      return changed;
    }
  }
  return {};
}

Result<> mount_all(const std::vector<MountSpec>& mounts, const std::string& target,
                   const IdMap& map, const std::string& scratch) {
  std::vector<MountPlan> plans;
  for (const MountSpec& spec : mounts) {
    TRY(MountPlan plan, plan_mount(spec));
    plans.push_back(std::move(plan));
  }
  std::size_t done = 0;
  for (const MountPlan& plan : plans) {
    const bool mapped = !plan.uid_map.empty() || !plan.gid_map.empty();
    Result<> mounted =
        mapped ? mount_idmapped(plan, target, map, scratch) : mount_planned(plan, target);
    if (!mounted) {
      for (; done > 0; --done) ::umount2(target.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
      return mounted;
    }
    ++done;
  }
  return {};
}

Result<> mount(const std::string& source, const std::string& target, const std::string& type,
               unsigned long flags, const std::string& data) {
  if (::mount(source.empty() ? "none" : source.c_str(), target.c_str(),
              type.empty() ? nullptr : type.c_str(), flags,
              data.empty() ? nullptr : data.c_str()) != 0) {
    return fail_errno("mount", fmt::format("{} on {}", type.empty() ? source : type, target));
  }
  return {};
}

Result<> mount_tmpfs(const std::string& target, const std::string& name, unsigned mode,
                     unsigned long long size, bool noexec, const std::string& more) {
  std::string data = fmt::format("mode={:o}", mode);
  if (size != 0) data += fmt::format(",size={}", size);
  data += more;
  unsigned long flags = MS_NODEV | MS_NOSUID;
  if (noexec) flags |= MS_NOEXEC;
  CHECK_OK(mount(name, target, "tmpfs", flags, data));
  Result<> made_private = make_mount_private(target);
  if (!made_private) ::umount2(target.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  return made_private;
}

Result<> bind_mount(const std::string& source, const std::string& target) {
  return mount(source, target, "", MS_BIND, "");
}

Result<> make_mount_private(const std::string& target) {
  return mount("", target, "", MS_PRIVATE, "");
}

Result<> unmount_all(const std::string& target) {
  // EINVAL: not a mount point (umount2(2)).
  while (::umount2(target.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno == EINVAL || errno == ENOENT) return {};
  return fail_errno("umount", target);
}

bool is_mountpoint(const std::string& path) {
  struct statx st {};
  if (::statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, 0, &st) != 0) return false;
  return (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

bool is_on_tmpfs(const std::string& path) {
  struct statfs st {};
  return ::statfs(path.c_str(), &st) == 0 && st.f_type == TMPFS_MAGIC;
}

}  // namespace kuasar::os
