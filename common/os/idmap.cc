#include "os/idmap.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "base/rollback.h"
#include "base/unique_fd.h"

namespace kuasar::os {
namespace {

constexpr std::string_view kLower = "lowerdir=";

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (;;) {
    const std::size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// A clone of what lies at `source`, mapped, that is not mounted anywhere yet.
Result<UniqueFd> mapped_clone(const std::string& source, int user_namespace, bool recursive) {
  const unsigned depth = recursive ? AT_RECURSIVE : 0;
  UniqueFd tree(::open_tree(AT_FDCWD, source.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | depth));
  if (!tree) return fail_errno("open_tree", source);
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_IDMAP;
  attributes.userns_fd = static_cast<std::uint64_t>(user_namespace);
  if (::mount_setattr(tree.get(), "", AT_EMPTY_PATH | depth, &attributes, sizeof attributes) != 0) {
    Error error = Error::from_errno("mount_setattr", source);
    if (error.err != EINVAL) return fail(std::move(error));
    return fail(std::move(error).context(
        "the file system there cannot be mapped into a user namespace (an idmapped mount); use "
        "another snapshotter or a newer kernel"));
  }
  return tree;
}

Result<> attach(const UniqueFd& tree, const std::string& target) {
  if (::move_mount(tree.get(), "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    return fail_errno("move_mount", target);
  }
  return {};
}

Result<> mount_overlay(const MountPlan& plan, const std::string& target, int user_namespace,
                       const std::string& scratch) {
  Rollback clean;
  clean.add([&] { (void)remove_idmap_scratch(scratch); });
  if (::mkdir(scratch.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("mkdir", scratch);
  std::vector<std::string> mapped;
  for (const std::string& lower : lower_dirs(plan.data)) {
    TRY(const UniqueFd tree, mapped_clone(lower, user_namespace, false));
    mapped.push_back(fmt::format("{}/{}", scratch, mapped.size()));
    if (::mkdir(mapped.back().c_str(), 0700) != 0) return fail_errno("mkdir", mapped.back());
    CHECK_OK(attach(tree, mapped.back()));
  }
  if (mapped.empty()) return fail(Code::kInvalidArgument, "overlay options have no lowerdir");
  MountPlan shifted = plan;
  shifted.data = with_lower_dirs(plan.data, mapped);
  // The overlay holds its own clones of them: the rollback is always run.
  return mount_planned(shifted, target);
}

}  // namespace

std::vector<std::string> lower_dirs(const std::string& data) {
  for (const std::string& option : split(data, ',')) {
    if (option.starts_with(kLower))
      return split(std::string_view(option).substr(kLower.size()), ':');
  }
  return {};
}

std::string with_lower_dirs(const std::string& data, const std::vector<std::string>& dirs) {
  std::string joined;
  for (const std::string& option : split(data, ',')) {
    if (!joined.empty()) joined += ',';
    if (!option.starts_with(kLower)) {
      joined += option;
      continue;
    }
    joined += kLower;
    for (std::size_t i = 0; i < dirs.size(); ++i) {
      if (i > 0) joined += ':';
      joined += dirs[i];
    }
  }
  return joined;
}

Result<> mount_idmapped(const MountPlan& plan, const std::string& target, const IdMap& map,
                        const std::string& scratch) {
  if (plan.uid_map != map.uids || plan.gid_map != map.gids || map.user_namespace.empty()) {
    return fail(Code::kInvalidArgument,
                "rootfs mount options uidmap={}, gidmap={} are not those of the pod's user "
                "namespace ({}, {})",
                plan.uid_map, plan.gid_map, map.uids.empty() ? "none" : map.uids,
                map.gids.empty() ? "none" : map.gids);
  }
  const UniqueFd user_namespace(::open(map.user_namespace.c_str(), O_RDONLY | O_CLOEXEC));
  if (!user_namespace) return fail_errno("open", map.user_namespace);
  if (plan.type == "overlay") return mount_overlay(plan, target, user_namespace.get(), scratch);
  if ((plan.flags & MS_BIND) == 0) {
    return fail(Code::kUnimplemented,
                "a root file system of type {} cannot be mapped into a user namespace", plan.type);
  }
  TRY(const UniqueFd tree,
      mapped_clone(plan.source, user_namespace.get(), (plan.flags & MS_REC) != 0));
  CHECK_OK(attach(tree, target));
  return finish_mount(plan, target);
}

Result<> remove_idmap_scratch(const std::string& scratch) {
  const UniqueFd dir(::open(scratch.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!dir && errno == ENOENT) return {};
  if (!dir) return fail_errno("open", scratch);
  for (int i = 0;; ++i) {
    const std::string one = fmt::format("{}/{}", scratch, i);
    struct stat st {};
    if (::lstat(one.c_str(), &st) != 0) break;
    CHECK_OK(unmount_all(one));
    if (::rmdir(one.c_str()) != 0) return fail_errno("rmdir", one);
  }
  if (::rmdir(scratch.c_str()) != 0) return fail_errno("rmdir", scratch);
  return {};
}

}  // namespace kuasar::os
