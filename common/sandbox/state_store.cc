#include "sandbox/state_store.h"

#include <fcntl.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <system_error>

#include "base/files.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/rollback.h"
#include "base/unique_fd.h"
#include "base/version.h"
#include "os/mount.h"
#include "sandbox/remove_tree.h"

namespace kuasar::sandbox {
namespace {

using Path = std::filesystem::path;

// A pod's configuration of 4 MiB, gRPC's limit, grows to six times as much when JSON escapes it.
constexpr std::size_t kMaxStateFile = 64U << 20;

// Names sorted, because their order shows in logs and in the order of recovery.
Result<std::vector<std::string>> names_in(const Path& dir) {
  std::vector<std::string> names;
  std::error_code ec;
  std::filesystem::directory_iterator it(dir, ec);
  for (; !ec && it != std::filesystem::directory_iterator(); it.increment(ec)) {
    names.push_back(it->path().filename().native());
  }
  if (ec) return fail(Error::from_errno_value(ec.value(), "read", dir.native()));
  std::sort(names.begin(), names.end());
  return names;
}

bool is_real_dir(const Path& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

Result<> check_is_ours(const Path& dir) {
  constexpr std::array<std::string_view, 6> kOurs{"boot_id", "lock",      "mounted",
                                                  "oci",     "sandboxes", "task.sock"};
  TRY(const std::vector<std::string> names, names_in(dir));
  if (std::find(names.begin(), names.end(), "boot_id") != names.end()) return {};
  for (const std::string& name : names) {
    const bool ours = std::find(kOurs.begin(), kOurs.end(), name) != kOurs.end();
    if (!ours && !name.starts_with(kTempPrefix)) {
      return fail(Code::kFailedPrecondition,
                  "the state directory {} holds something that is not ours ({}); choose a new or "
                  "an empty one with --dir",
                  dir.native(), name);
    }
  }
  return {};
}

Result<> make_state_dir(const Path& dir) {
  if (!dir.is_absolute()) {
    return fail(Code::kInvalidArgument, "the state directory \"{}\" is no absolute path",
                dir.native());
  }
  if (dir.lexically_normal() == "/") {
    return fail(Code::kInvalidArgument, "the state directory must not be /");
  }
  Result<> made = make_dir(dir, 0711);
  if (!made && made.error().err == ENOENT) {
    return fail(Code::kNotFound, "the parent of the state directory {} does not exist: create it",
                dir.native());
  }
  CHECK_OK(made);
  if (!is_real_dir(dir)) {
    return fail(Code::kFailedPrecondition, "the state directory {} is no directory", dir.native());
  }
  return check_is_ours(dir);
}

void remove_temporaries(const Path& dir) {
  Result<std::vector<std::string>> names = names_in(dir);
  if (!names) return;
  for (const std::string& name : *names) {
    if (name.starts_with(kTempPrefix)) ::unlink((dir / name).c_str());
  }
}

Result<> claim_for_this_boot(const StatePaths& paths) {
  TRY(std::string current, read_file("/proc/sys/kernel/random/boot_id", 4096));
  Result<std::string> recorded = read_file(paths.boot_id(), 4096);
  if (recorded && *recorded == current) return {};
  if (recorded) {
    log::info({}, "removing the state that another boot left in {}", paths.root().native());
    const bool mounted = ::access(paths.mount_mark().c_str(), F_OK) == 0;
    CHECK_OK(remove_tree_content(paths.root(), paths.lock().filename().native()));
    if (mounted) CHECK_OK(write_file(paths.mount_mark(), ""));
  } else if (recorded.error().err != ENOENT) {
    return fail(std::move(recorded).error());
  } else if (is_real_dir(paths.sandboxes())) {
    log::warning({}, "{} is gone; the sandboxes beside it are taken for this boot's",
                 paths.boot_id().native());
  }
  return write_file_atomic(paths.boot_id(), current);
}

Error explain_full(Error error, const Path& root) {
  if (error.err != ENOSPC && error.err != EDQUOT) return error;
  const int err = error.err;
  Error full = Error::make(
      Code::kResourceExhausted,
      "the state directory {} is full (see \"df -h {}\" and \"df -i {}\"); remove pods or enlarge "
      "its tmpfs with \"mount -o remount,size=...\": {}",
      root.native(), root.native(), root.native(), error.message);
  full.err = err;
  return full;
}

StateProblem corrupt(const Path& file, std::string_view why) {
  StateProblem problem;
  problem.kind = StateProblem::Kind::kCorrupt;
  problem.words = fmt::format("{} cannot be used: {}", file.native(), why);
  return problem;
}

StateProblem needs_newer(const Path& file, std::uint32_t min_reader, std::string written_by) {
  StateProblem problem;
  problem.kind = StateProblem::Kind::kNeedsNewer;
  problem.min_reader = min_reader;
  problem.written_by = std::move(written_by);
  problem.words = fmt::format(
      "{} was written by version {} and needs a reader of state version {}; this is version {} "
      "(state version {}): use that version or a later one for this object",
      file.native(), problem.written_by.empty() ? "(unknown)" : problem.written_by, min_reader,
      version(), kStateReader);
  return problem;
}

// The header, read without a schema: a later version may have changed everything behind it.
struct LooseHeader {
  std::uint32_t min_reader = 0;
  std::string written_by;
};
std::optional<LooseHeader> read_header(const std::string& json) {
  google::protobuf::Struct file;
  if (!google::protobuf::util::JsonStringToMessage(json, &file).ok()) return std::nullopt;
  const auto header = file.fields().find("header");
  if (header == file.fields().end()) return std::nullopt;
  const auto& fields = header->second.struct_value().fields();
  const auto min_reader = fields.find("min_reader");
  if (min_reader == fields.end()) return std::nullopt;
  const double number = min_reader->second.number_value();
  if (!(number >= 1 && number <= 1e9)) return std::nullopt;
  LooseHeader loose;
  loose.min_reader = static_cast<std::uint32_t>(number);
  const auto written_by = fields.find("written_by");
  if (written_by != fields.end()) loose.written_by = written_by->second.string_value();
  return loose;
}

template <typename State>
Loaded<State> read_state(const std::string& id, const Path& file) {
  Loaded<State> loaded;
  loaded.id = id;
  Result<std::string> json = read_file(file, kMaxStateFile);
  if (!json) {
    loaded.problem = corrupt(file, json.error().message);
    if (json.error().err == ENOENT) loaded.problem->kind = StateProblem::Kind::kUnsaved;
    return loaded;
  }
  const std::optional<LooseHeader> header = read_header(*json);
  if (!header) {
    loaded.problem = corrupt(file, "it is damaged or no state file");
    return loaded;
  }
  if (header->min_reader > kStateReader) {
    loaded.problem = needs_newer(file, header->min_reader, header->written_by);
    return loaded;
  }
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  State state;
  const auto status = google::protobuf::util::JsonStringToMessage(*json, &state, options);
  if (status.ok()) {
    loaded.state = std::move(state);
  } else {
    loaded.problem = corrupt(file, status.ToString());
  }
  return loaded;
}

template <typename State>
Loaded<State> load_file(const std::string& id, const Path& file) {
  Loaded<State> loaded = read_state<State>(id, file);
  if (!loaded.state) return loaded;
  if (loaded.state->id() != id) {
    loaded.problem = corrupt(file, "it is about another id than its directory");
  } else if (loaded.state->phase() == State::PHASE_UNSPECIFIED) {
    loaded.problem = corrupt(file, "it names no phase that is known here");
  }
  if (loaded.problem) loaded.state.reset();
  return loaded;
}

// Bounds what our state can take of the machine's memory, and of a tmpfs /run that it shared
// otherwise. A pod with two containers takes some 60 KiB.
std::uint64_t state_size() {
  constexpr std::uint64_t kMost = 1ULL << 30;
  const auto pages = static_cast<std::uint64_t>(std::max(0L, ::sysconf(_SC_PHYS_PAGES)));
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return std::clamp(pages * page / 8, std::uint64_t{64} << 20, kMost);
}

bool is_object_dir(const Path& path) {
  return validate_id("a directory", path.filename().native()) && is_real_dir(path);
}

// The ids of a directory of objects; everything else there is logged and left alone.
Result<std::vector<std::string>> object_ids(const Path& dir, std::string_view what) {
  TRY(std::vector<std::string> names, names_in(dir));
  std::erase_if(names, [&](const std::string& name) {
    if (is_object_dir(dir / name)) return false;
    log::warning({}, "{} is no {} directory; it is left alone", (dir / name).native(), what);
    return true;
  });
  return names;
}

template <typename State>
void fill_header(State& state) {
  state.mutable_header()->set_min_reader(kStateMinReader);
  state.mutable_header()->set_written_by(std::string(version()));
}

Result<> make_new_dir(const Path& dir, mode_t mode, std::string_view what) {
  if (::mkdir(dir.c_str(), mode) != 0) {
    if (errno == EEXIST) {
      return fail(Code::kAlreadyExists, "the {} directory {} exists already", what, dir.native());
    }
    return fail_errno("mkdir", dir.native());
  }
  // The umask must not decide who may pass.
  if (::chmod(dir.c_str(), mode) != 0) {
    Error error = Error::from_errno("chmod", dir.native());
    ::rmdir(dir.c_str());
    return fail(std::move(error));
  }
  return {};
}

}  // namespace

Result<> prepare_state_dir(const Path& dir) {
  CHECK_OK(make_state_dir(dir));
  const std::string& target = dir.native();
  // Two daemons that start at once must not mount twice: the second waits and sees the first's.
  UniqueFd turn(::open(target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!turn) return fail_errno("open", target);
  if (::flock(turn.get(), LOCK_EX) != 0) return fail_errno("lock", target);

  Rollback rollback;
  if (!os::is_mountpoint(target)) {
    // State that lies on the host's own tmpfs stays visible: a daemon of an earlier version put it
    // there.
    if (os::is_on_tmpfs(target) && is_real_dir(StatePaths(dir).sandboxes())) {
      CHECK_OK(os::bind_mount(target, target));
    } else {
      // Executables are allowed: runc may run a sealed copy of itself out of its state directory.
      CHECK_OK(os::mount_tmpfs(target, "kuasar", 0711, state_size(), false));
    }
    rollback.add([&] { (void)os::unmount_all(target); });
    CHECK_OK(write_file(StatePaths(dir).mount_mark(), ""));
  }
  CHECK_OK(os::make_mount_private(target));
  if (::chmod(target.c_str(), 0711) != 0) return fail_errno("chmod", target);
  rollback.commit();
  return {};
}

void release_state_dir(const StatePaths& paths) {
  const auto there = [](const Path& path) { return ::access(path.c_str(), F_OK) == 0; };
  if (!there(paths.mount_mark()) || there(paths.keeper_socket())) return;
  const Result<std::vector<std::string>> sandboxes = names_in(paths.sandboxes());
  if (there(paths.sandboxes()) && (!sandboxes || !sandboxes->empty())) return;
  ::unlink(paths.mount_mark().c_str());
  if (Result<> unmounted = os::unmount_all(paths.root()); !unmounted) {
    log::warning({}, "{}", unmounted.error().message);
  }
}

Result<StateStore> StateStore::open(const Path& dir) {
  CHECK_OK(make_state_dir(dir));
  StateStore store{StatePaths(dir)};
  const StatePaths& paths = store.paths_;
  const auto make = [&]() -> Result<> {
    CHECK_OK(claim_for_this_boot(paths));
    CHECK_OK(make_dir(paths.sandboxes(), 0711));
    CHECK_OK(make_dir(paths.consoles(), 0700));
    return make_dir(paths.runtime_root(), 0700);
  };
  if (Result<> made = make(); !made) return fail(explain_full(std::move(made).error(), dir));
  remove_temporaries(dir);
  return store;
}

Result<> StateStore::save(const Path& file, const google::protobuf::Message& state) const {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(state, &json, options);
  if (!status.ok()) {
    return fail(Code::kInternal, "cannot print the state for {}: {}", file.native(),
                status.ToString());
  }
  Result<> written = write_file_atomic(file, json);
  if (!written) return fail(explain_full(std::move(written).error(), paths_.root()));
  return {};
}

Result<> StateStore::create_sandbox(const std::string& id) const {
  CHECK_OK(validate_id("the sandbox id", id));
  const Path dir = paths_.sandbox(id);
  const auto make = [&]() -> Result<> {
    CHECK_OK(make_new_dir(dir, 0700, "sandbox"));
    Rollback rollback;
    rollback.add([&dir] { (void)remove_tree(dir); });
    CHECK_OK(make_dir(paths_.namespaces(id), 0700));
    CHECK_OK(make_dir(paths_.files(id), 0711));
    CHECK_OK(make_dir(paths_.shm(id), 0711));
    CHECK_OK(make_dir(paths_.containers(id), 0700));
    rollback.commit();
    return {};
  };
  if (Result<> made = make(); !made) {
    return fail(explain_full(std::move(made).error(), paths_.root()));
  }
  return {};
}

Result<> StateStore::save_sandbox(state::v1::SandboxState state) const {
  CHECK_OK(validate_id("the sandbox id", state.id()));
  fill_header(state);
  return save(paths_.sandbox_file(state.id()), state);
}

Result<std::vector<LoadedSandbox>> StateStore::load_sandboxes() const {
  TRY(const std::vector<std::string> ids, object_ids(paths_.sandboxes(), "sandbox"));
  std::vector<LoadedSandbox> all;
  for (const std::string& id : ids) {
    all.push_back(load_file<state::v1::SandboxState>(id, paths_.sandbox_file(id)));
    if (!all.back().state) continue;
    remove_temporaries(paths_.sandbox(id));
    remove_temporaries(paths_.files(id));
  }
  return all;
}

std::vector<std::string> StateStore::unexplained() const {
  std::vector<std::string> all;
  const auto look = [&](const Path& dir, const auto& each) {
    const Result<std::vector<std::string>> names = names_in(dir);
    if (!names) return;
    for (const std::string& name : *names) {
      if (is_object_dir(dir / name)) {
        each(name);
      } else {
        all.push_back((dir / name).native());
      }
    }
  };
  look(paths_.sandboxes(),
       [&](const std::string& id) { look(paths_.containers(id), [](const std::string&) {}); });
  return all;
}

Result<> StateStore::remove_sandbox(const std::string& id) const {
  CHECK_OK(validate_id("the sandbox id", id));
  return remove_tree(paths_.sandbox(id), paths_.sandbox_file(id).filename().native());
}

Result<> StateStore::create_container(const std::string& sandbox_id, const std::string& id) const {
  CHECK_OK(validate_id("the sandbox id", sandbox_id));
  CHECK_OK(validate_id("the container id", id));
  Result<> made = make_new_dir(paths_.container(sandbox_id, id), 0700, "container");
  if (!made) return fail(explain_full(std::move(made).error(), paths_.root()));
  return {};
}

Result<> StateStore::save_container(state::v1::ContainerState state) const {
  CHECK_OK(validate_id("the sandbox id", state.sandbox_id()));
  CHECK_OK(validate_id("the container id", state.id()));
  fill_header(state);
  return save(paths_.container_file(state.sandbox_id(), state.id()), state);
}

Result<std::vector<LoadedContainer>> StateStore::load_containers(
    const std::string& sandbox_id) const {
  CHECK_OK(validate_id("the sandbox id", sandbox_id));
  std::vector<LoadedContainer> all;
  if (!is_real_dir(paths_.containers(sandbox_id))) return all;
  TRY(const std::vector<std::string> ids, object_ids(paths_.containers(sandbox_id), "container"));
  for (const std::string& id : ids) {
    const Path file = paths_.container_file(sandbox_id, id);
    LoadedContainer loaded = load_file<state::v1::ContainerState>(id, file);
    if (loaded.state && loaded.state->sandbox_id() != sandbox_id) {
      loaded.state.reset();
      loaded.problem = corrupt(file, "it is about a container of another sandbox");
    }
    if (loaded.state) remove_temporaries(paths_.container(sandbox_id, id));
    all.push_back(std::move(loaded));
  }
  return all;
}

Result<> StateStore::remove_container(const std::string& sandbox_id, const std::string& id) const {
  CHECK_OK(validate_id("the sandbox id", sandbox_id));
  CHECK_OK(validate_id("the container id", id));
  return remove_tree(paths_.container(sandbox_id, id),
                     paths_.container_file(sandbox_id, id).filename().native());
}

Result<> StateStore::save_tombstones(const std::string& sandbox_id,
                                     state::v1::Tombstones stones) const {
  CHECK_OK(validate_id("the sandbox id", sandbox_id));
  fill_header(stones);
  return save(paths_.tombstones(sandbox_id), stones);
}

state::v1::Tombstones StateStore::load_tombstones(const std::string& sandbox_id) const {
  const Path file = paths_.tombstones(sandbox_id);
  if (::access(file.c_str(), F_OK) != 0) return {};
  Loaded<state::v1::Tombstones> loaded = read_state<state::v1::Tombstones>(sandbox_id, file);
  if (loaded.state) return std::move(*loaded.state);
  log::warning({sandbox_id, {}}, "{}", loaded.problem ? loaded.problem->words : file.native());
  return {};
}

}  // namespace kuasar::sandbox
