#pragma once

#include <boost/json/value.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace kuasar::oci {

/// Limits on a config.json; what is larger is kResourceExhausted. containerd's own are some 10 KiB
/// and 8 levels deep.
inline constexpr std::size_t kMaxSpecBytes = 16U << 20;
inline constexpr std::size_t kMaxSpecDepth = 64;

/// One element of linux.namespaces; an empty path asks for a new namespace.
struct NamespaceEntry {
  std::string type;
  std::string path;
  bool operator==(const NamespaceEntry&) const = default;
};

/// One element of linux.uidMappings or linux.gidMappings, and of those of a mount.
struct IdMapping {
  std::uint32_t container_id = 0;
  std::uint32_t host_id = 0;
  std::uint32_t size = 0;
  bool operator==(const IdMapping&) const = default;
};

/// One element of mounts.
struct Mount {
  std::string destination;
  std::string type;
  std::string source;
  std::vector<std::string> options;
  std::vector<IdMapping> uid_mappings = {};
  std::vector<IdMapping> gid_mappings = {};
  bool operator==(const Mount&) const = default;
};

/// process.user, as far as we need it.
struct User {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  bool operator==(const User&) const = default;
};

/// A view on an OCI config.json that loses nothing: fields that we do not know, and the order of
/// keys, are in dump() as they were in parse(). A value; no executor.
///
/// Numbers: integers within int64 or uint64 come out digit by digit. Anything else (a fraction, an
/// exponent, a larger integer) is held as a double and comes out in another notation ("1.5" as
/// "1.5E0"), its last digits perhaps rounded anew by each parse; no field of the runtime
/// specification is of that kind. Of a key that an object has twice the last one counts, and only
/// that one is kept.
///
/// The text comes from outside. No accessor throws: an absent field (or null) is an empty value
/// unless said otherwise, a field of a wrong type is kInvalidArgument with its JSON path
/// ("process.args[2]: expected a string, found a number"). A failed change leaves the spec as it
/// was.
class Spec {
 public:
  /// An empty object.
  Spec();
  /// kInvalidArgument when it is not JSON or no object; kResourceExhausted above the limits. Also
  /// refused: a number beyond the range of a double, and a key that differs from a field of ours
  /// in case only ("Linux"), because runtimes written in Go would take it for that field and we
  /// would not.
  static Result<Spec> parse(std::string_view text);
  std::string dump() const;
  /// The whole document, for what has no accessor of its own.
  const boost::json::value& root() const { return root_; }

  Result<bool> terminal() const;
  Result<std::vector<std::string>> args() const;
  Result<std::vector<std::string>> env() const;
  Result<User> process_user() const;
  /// process.selinuxLabel
  Result<std::string> selinux_label() const;
  /// process.apparmorProfile
  Result<std::string> apparmor_profile() const;
  /// linux.mountLabel
  Result<std::string> mount_label() const;
  Result<std::string> hostname() const;
  /// process.oomScoreAdj
  Result<std::optional<int>> oom_score_adj() const;
  /// process must be there.
  Result<> set_oom_score_adj(int value);
  /// hooks.poststart is there and not empty.
  Result<bool> has_poststart_hooks() const;
  /// linux.cgroupsPath
  Result<std::string> cgroups_path() const;
  Result<std::optional<std::string>> annotation(std::string_view key) const;
  /// The value at a dotted path ("linux.resources") as JSON text; empty when it is absent.
  Result<std::string> json_at(std::string_view path) const;

  /// As written, perhaps relative to the bundle. An absent one is an error.
  Result<std::string> root_path() const;
  Result<> set_root_path(std::string_view path);
  Result<bool> root_readonly() const;

  Result<std::vector<NamespaceEntry>> namespaces() const;
  /// The entry must exist (kNotFound), at most once; its path is replaced.
  Result<> set_namespace_path(std::string_view type, std::string_view path);
  /// Removes every entry of that type, which hands the container the runtime's own namespace;
  /// kNotFound when there is none.
  Result<> remove_namespace(std::string_view type);

  Result<std::vector<Mount>> mounts() const;
  /// Destinations are compared by normalise_destination().
  Result<bool> has_mount(std::string_view destination) const;
  /// The last mount on that destination, the one that the container sees.
  Result<std::optional<Mount>> find_mount(std::string_view destination) const;
  /// find_mount()->source, or empty.
  Result<std::string> mount_source(std::string_view destination) const;
  /// Runtimes mount in the order of the list. A new mount goes to the end, so that it lies on top
  /// of its parents (/dev/shm after /dev), or, where the list has mounts below it after the last
  /// of its parents, right before the first of those, so that it does not hide them.
  /// kAlreadyExists when the destination is taken. Links inside the rootfs are not followed.
  Result<> add_mount(const Mount& mount);
  /// Puts `mount` in the place of the last one on the same destination (kNotFound when there is
  /// none): for containerd's default /dev/shm, which is private to the container.
  Result<> replace_mount(const Mount& mount);

  /// linux.uidMappings, linux.gidMappings
  Result<std::vector<IdMapping>> uid_mappings() const;
  Result<std::vector<IdMapping>> gid_mappings() const;
  /// A mount has uidMappings, gidMappings, or the option idmap or ridmap.
  Result<bool> has_idmapped_mounts() const;

 private:
  explicit Spec(boost::json::value root) : root_(std::move(root)) {}

  boost::json::value root_;
};

/// "/a//b/./c/" -> "/a/b/c"; a relative one gets a leading slash and ".." goes up one, both by the
/// text alone, as runc does.
std::string normalise_destination(std::string_view destination);

/// True for the systemd form of a cgroupsPath, "x.slice:prefix:name".
bool is_systemd_cgroups_path(std::string_view path);

}  // namespace kuasar::oci
