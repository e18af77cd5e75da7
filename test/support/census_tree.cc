#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>
#include <string>

#include "support/census_parts.h"

namespace kuasar::test::census {
namespace {

void add_entry(const std::string& path, mode_t mode, Items& items) {
  CensusItem item;
  item.kind = S_ISFIFO(mode) ? "fifo" : "file";
  item.key = path;
  if (S_ISDIR(mode)) {
    item.key += " (directory)";
  } else if (S_ISSOCK(mode)) {
    item.key += " (socket)";
  } else if (S_ISLNK(mode)) {
    item.key += " (symlink)";
  } else if (S_ISCHR(mode) || S_ISBLK(mode)) {
    item.key += " (device)";
  }
  item.words = item.key;
  items.push_back(std::move(item));
}

// What is mounted inside a tree is named by its mount; a walk into it would list a container's
// whole root file system.
void walk(const std::string& dir, dev_t device, Items& items) {
  DIR* stream = ::opendir(dir.c_str());
  if (stream == nullptr) {
    return;
  }
  while (const dirent* entry = ::readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") {
      continue;
    }
    const std::string path = dir + "/" + entry->d_name;
    struct stat status {};
    if (::fstatat(::dirfd(stream), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
      continue;
    }
    add_entry(path, status.st_mode, items);
    if (S_ISDIR(status.st_mode) && status.st_dev == device) {
      walk(path, device, items);
    }
  }
  ::closedir(stream);
}

std::set<std::string> existing(const std::vector<std::filesystem::path>& dirs) {
  std::set<std::string> found;
  for (const std::filesystem::path& dir : dirs) {
    std::error_code error;
    const std::filesystem::path canonical = std::filesystem::canonical(dir, error);
    if (!error) {
      found.insert(canonical.native());
    }
  }
  return found;
}

}  // namespace

void add_tree(const CensusScope& scope, Items& items) {
  const std::set<std::string> dirs = existing(scope.dirs);
  for (const std::string& dir : dirs) {
    const bool inside_another = std::any_of(dirs.begin(), dirs.end(), [&dir](const auto& other) {
      return dir != other && lies_below(dir, {other});
    });
    struct stat status {};
    if (!inside_another && ::lstat(dir.c_str(), &status) == 0) {
      add_entry(dir, status.st_mode, items);
      walk(dir, status.st_dev, items);
    }
  }
}

void add_netns_files(const CensusScope& scope, Items& items) {
  for (const std::string& dir : existing(scope.netns_dirs)) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
      CensusItem item;
      item.kind = "netns file";
      item.standing = CensusStanding::kUnowned;
      item.key = entry.path().native();
      item.words = item.key;
      items.push_back(std::move(item));
    }
  }
}

}  // namespace kuasar::test::census
