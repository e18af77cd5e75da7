#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kuasar/state/v1/state.pb.h"
#include "sandbox/state_paths.h"

namespace kuasar::sandbox {

/// Version of this reader; a file whose min_reader is above it is not for us.
inline constexpr std::uint32_t kStateReader = 1;
/// What a reader must at least be for the files that we write.
inline constexpr std::uint32_t kStateMinReader = 1;

/// Why a state file could not be used.
struct StateProblem {
  enum class Kind {
    /// Written by a later version: leave the object alone, answer changes with words().
    kNeedsNewer,
    /// Not what a writer of ours leaves behind: leave the object alone as well.
    kCorrupt,
    /// The directory has no state file: a crash came before the first save, so that nobody was
    /// ever told of the object. It may be removed.
    kUnsaved,
  };
  Kind kind = Kind::kCorrupt;
  std::uint32_t min_reader = 0;
  std::string written_by;
  /// For a person: names the file, the cause and, where there is one, the remedy.
  std::string words;
};

/// One object found on disk: exactly one of `state` and `problem` is set.
template <typename State>
struct Loaded {
  std::string id;
  std::optional<State> state;
  std::optional<StateProblem> problem;
};
using LoadedSandbox = Loaded<state::v1::SandboxState>;
using LoadedContainer = Loaded<state::v1::ContainerState>;

/// Makes `dir` fit for state, before the daemon takes its lock there: the directory (0711; its
/// parent must exist), a tmpfs on it unless it lies on one, private propagation, so that namespace
/// pins stay in this mount namespace. Done already by an earlier daemon: success. A directory that
/// holds anything but a tree of ours is refused, because a slip of --dir must not hide /etc.
/// Needs CAP_SYS_ADMIN. A failure leaves at most the empty directory.
Result<> prepare_state_dir(const std::filesystem::path& dir);
/// Takes away what this daemon's prepare_state_dir(), or an earlier one's, mounted, unless a
/// sandbox or a keeper's socket lies there. Call it with the lock held.
void release_state_dir(const StatePaths& paths);

/// The sandboxer's state on its tmpfs, one JSON file per object, each replaced as a whole. Owned
/// by the SandboxManager. All calls are synchronous and touch only a tmpfs; remove_*() may be
/// long with many files and then belongs on the blocking pool. Distinct objects may be worked on
/// by distinct threads. A failed save leaves the earlier content.
class StateStore {
 public:
  /// Opens a prepared directory that this daemon has locked: another boot's tree is removed (its
  /// lock file stays), this boot's id is written, sandboxes/ and oci/ are made where missing.
  static Result<StateStore> open(const std::filesystem::path& dir);

  const StatePaths& paths() const { return paths_; }

  /// Makes the directories of a sandbox. kAlreadyExists when there is one. A failure leaves none.
  Result<> create_sandbox(const std::string& id) const;
  /// Fills the header and replaces the file. kResourceExhausted when the tmpfs is full.
  Result<> save_sandbox(state::v1::SandboxState state) const;
  /// Every sandbox in order of ids. What lies in sandboxes/ without being a directory with a
  /// valid id is logged and left alone. Temporaries that a crash left are removed.
  Result<std::vector<LoadedSandbox>> load_sandboxes() const;
  /// The paths that load_sandboxes() and load_containers() leave alone because they are no
  /// directory of an object.
  std::vector<std::string> unexplained() const;
  /// Removes everything of a sandbox. Nothing there: success. A mount that is still inside is
  /// never entered: kFailedPrecondition names it, sandbox.json goes last so that a retry finds it.
  Result<> remove_sandbox(const std::string& id) const;

  /// Makes a container's directory. kAlreadyExists when there is one.
  Result<> create_container(const std::string& sandbox_id, const std::string& id) const;
  Result<> save_container(state::v1::ContainerState state) const;
  Result<std::vector<LoadedContainer>> load_containers(const std::string& sandbox_id) const;
  Result<> remove_container(const std::string& sandbox_id, const std::string& id) const;

  /// Replaces the tombstones of a sandbox.
  Result<> save_tombstones(const std::string& sandbox_id, state::v1::Tombstones stones) const;
  /// None where there is no file, or one that cannot be read (logged): they are a courtesy.
  state::v1::Tombstones load_tombstones(const std::string& sandbox_id) const;

 private:
  explicit StateStore(StatePaths paths) : paths_(std::move(paths)) {}
  Result<> save(const std::filesystem::path& file, const google::protobuf::Message& state) const;

  StatePaths paths_;
};

}  // namespace kuasar::sandbox
