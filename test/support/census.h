#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace kuasar::test {

/// What a census looks at. `daemon`, its `keeper` and `containerd` are the processes under test; 0
/// means that there is none. `roots` are further processes whose descendants are ours (usually the
/// test itself); the processes named here are not counted, only what hangs below them. `dirs` are
/// the trees whose files, FIFOs, sockets and mounts are ours: the daemon's --dir, containerd's
/// state. The trees containerd fills without bound (its root with the snapshots) do not belong
/// here.
struct CensusScope {
  pid_t containerd = 0;
  pid_t daemon = 0;
  pid_t keeper = 0;
  std::vector<std::filesystem::path> dirs;
  std::vector<pid_t> roots;
  std::vector<std::filesystem::path> netns_dirs = {"/run/netns", "/var/run/netns"};
};

/// How a counted object relates to the test, which decides when a difference is worth a line.
enum class CensusStanding {
  /// Reported when it appears and when it vanishes.
  kOurs,
  /// Bears no owner's name (a mount, a link, an empty cgroup). Reported when it appears; others
  /// of this machine may take theirs away at any time.
  kUnowned,
  /// Not below one of our processes, but carries a sign of us. Reported when it appears, unless the
  /// process it descends from was there before and is not ours.
  kAdrift,
  /// Somebody else's. Only remembered, so that it is not taken for new when its standing changes.
  kForeign,
};

/// One counted kernel object or file. Objects of one kind with one key are interchangeable and only
/// their number is compared: a pid or an inode stands in the key only where identity matters.
struct CensusItem {
  std::string kind;
  std::string key;
  std::string words;
  CensusStanding standing = CensusStanding::kOurs;
  std::string origin;
};

/// A snapshot of everything that a node daemon could leak: processes and zombies by parent chain,
/// mounts, cgroups of every hierarchy, netns files, nsfs pins, AF_UNIX sockets, FIFOs, files, fds
/// and threads of the daemon, leak-prone fds of containerd, network links.
//
/// A value: it holds no kernel object, owns nothing and may be taken on any thread. What vanishes
/// while it is taken is left out. Needs root to read the fds of others.
//
/// The ignore rules, all of them:
///  1. kernel threads;
///  2. foreign processes without a sign of us (census_processes.cc, `signs_of_us`), sockets that
///     only foreign processes hold, cgroups in which only foreign processes live, and the
///     disappearance of what bears no owner's name outside `dirs`: other sessions
///     of this machine come and go while a test runs;
///  3. containerd's threads, and its fds other than FIFOs, pipes, pidfds, namespaces and what lies
///     below `dirs`: the Go runtime, bolt, CRI clients and the event exchange move these freely;
///     and its ends of a removed stdin FIFO: containerd 2.1.9 leaves those of an exec whose client
///     hangs up while it ends to Go's garbage collector (our own ends of it are counted);
///  4. the daemon's threads of libraries that grow and shrink by themselves, up to a number each
///     (census.cc, `kElastic`);
///  5. size, time and content of a file: a census counts objects;
///  6. one open statm and one open smaps of the daemon itself, which looks every two seconds at
///     what it has in memory (daemon/give_back).
class Census {
 public:
  static Census take(const CensusScope& scope);

  /// A census that nothing changed against for 100 ms, or the last one after 5 s: what a program
  /// does after it has said "ready" (threads that name themselves, connections of a readiness probe
  /// that close) must not become a difference later.
  static Census take_settled(const CensusScope& scope);

  /// Empty when equal. Every line names the kind and the object, and begins with "gone: " when the
  /// object was there before and is not any more.
  static std::vector<std::string> diff(const Census& before, const Census& after);

  /// Takes a census until it equals `before` or the deadline is over (exits, lazy unmounts, reaping
  /// of zombies by a foreign parent and releases of cgroups take their time), and returns the last
  /// difference.
  static std::vector<std::string> wait_equal(
      const Census& before, const CensusScope& scope,
      std::chrono::milliseconds deadline = std::chrono::seconds(10));

  const std::vector<CensusItem>& items() const { return items_; }

  /// The number of items of a kind that are ours, for tests and for a demo's words.
  std::size_t count(const std::string& kind) const;

 private:
  std::vector<CensusItem> items_;
};

inline std::vector<std::string> diff(const Census& before, const Census& after) {
  return Census::diff(before, after);
}

}  // namespace kuasar::test
