#pragma once

#include <sys/types.h>

#include <bitset>
#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "async/task_group.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "os/fd_holder.h"
#include "os/pump.h"

namespace kuasar::task {

/// What containerd named as the standard streams of a process.
struct StdioPaths {
  std::string stdin_path;
  std::string stdout_path;
  std::string stderr_path;
};

/// Everything about the streams of one process before they are opened.
struct StdioPlan {
  std::string container;
  /// Empty: the init.
  std::string exec;
  StdioPaths paths;
  bool terminal = false;
  /// PUMP: the process gets a pipe whose bytes we move. PASS: it gets the FIFO, no byte passes us.
  /// A terminal is always pumped.
  bool pump = false;
  /// Owner of the FIFOs where the OCI runtime cannot give them away; 0 and 0: left to it.
  uid_t uid = 0;
  gid_t gid = 0;
  /// SELinux label of the FIFOs; empty: they keep theirs.
  std::string label = {};
  /// An existing directory with a short path, for the console socket of a terminal.
  std::string console_dir;
  /// Whether containerd is there to read (its connection for the container is open).
  std::function<bool()> connected = [] { return true; };
};

/// The standard streams of one process, from before its start until its Delete. Descriptors that
/// must outlive this daemon are in an os::FdHolder under "io/<container>/<exec or ->/<what>":
/// "stdout.r", "stdout.w", "stdout.pipe" (stderr likewise), "stdin.r", "stdin.w", "console", "pty".
///
/// An output FIFO has a reader and a writer of ours until the process has ended and (PUMP) its
/// output was moved; then ours goes as soon as containerd has a reader, which it opens on a thread
/// that may come late and would wait for a writer for ever. With containerd's connection gone both
/// stay until containerd asks about the stopped task (reader_came()): its reader opens only while a
/// writer exists, and its start-up waits for our end (T22). An input FIFO has a writer of ours
/// until close_stdin() or the end of the process, so that an attach may come and go.
///
/// Held by shared_ptr, lives on the io thread; the pumps are children of `group`, which must be
/// joined before the holder is destroyed.
class Stdio : public std::enable_shared_from_this<Stdio> {
 public:
  /// How long an init's pump goes on after its end when a child of it holds the pipe (T23). An
  /// exec's goes on until its Delete: whether a child may hold up an exec is containerd's to say
  /// (drain_exec_sync_io_timeout).
  static constexpr std::chrono::seconds kLinger{10};
  /// How long our writer waits for containerd's reader to come, or to read what is left (T22).
  static constexpr std::chrono::seconds kReadPatience{2};

  /// Opens the streams; an empty path is /dev/null. Never blocks. A failure leaves nothing held.
  static Result<std::shared_ptr<Stdio>> open(TaskGroup& group, asio::any_io_executor executor,
                                             os::FdHolder& holder, const StdioPlan& plan);
  /// Takes over what an earlier daemon left in the holder. With `reopen` a FIFO of which nothing is
  /// held is opened anew; a pipe or terminal that is not held is lost.
  static std::shared_ptr<Stdio> recover(TaskGroup& group, asio::any_io_executor executor,
                                        os::FdHolder& holder, const StdioPlan& plan, bool reopen);
  ~Stdio();

  // For the driver, until drop_process_ends(). -1 where the stream is /dev/null or a terminal.
  int stdin_fd() const { return stdin_.process_end.get(); }
  int stdout_fd() const { return stdout_.process_end.get(); }
  int stderr_fd() const { return stderr_.process_end.get(); }
  /// Where the OCI runtime sends the terminal; empty without one.
  const std::string& console_socket() const { return console_path_; }

  /// The process has its ends (or never will): from here on only it holds them.
  void drop_process_ends();
  /// The process exists: fetches its terminal and starts the pumps.
  Result<> begin();
  /// kFailedPrecondition without a terminal.
  Result<> resize(std::uint16_t width, std::uint16_t height) const;
  bool terminal() const { return terminal_; }
  void close_stdin();
  /// The process has ended (`since` ago, after a recovery). Call before anybody is told of it.
  void process_ended(std::chrono::nanoseconds since = {});
  /// containerd has asked about the process; does something only after its end.
  void reader_came();
  /// Ends when what reader_came() told containerd's readers of has been read, or after `patience`;
  /// at once when it was not called, or nothing was left.
  static Task<> read_within(std::shared_ptr<Stdio> self, std::chrono::nanoseconds patience);
  /// Lets go of everything; running pumps are cut.
  void close();
  /// What the holder has belongs to another Stdio of the same process from here on: closes only
  /// what is open here.
  void forsake();

 private:
  struct Output {
    const char* name;
    UniqueFd reader;
    /// Moved into the pump while that runs.
    UniqueFd writer;
    UniqueFd process_end;
    UniqueFd source;
    std::shared_ptr<os::Pump> pump;
    /// No byte will come from us any more.
    bool finished = false;
    bool draining = false;
    bool awaiting = false;
  };
  struct Input {
    UniqueFd writer;
    UniqueFd reader;
    UniqueFd process_end;
    std::shared_ptr<os::Pump> pump;
  };

  Stdio(TaskGroup& group, asio::any_io_executor executor, os::FdHolder& holder,
        const StdioPlan& plan);

  Result<> hold(std::string_view what, int fd);
  void take(std::string_view what, UniqueFd& fd);
  void drop(std::string_view what);
  const std::string& path_of(const StdioPlan& plan, const Output& output) const;
  Result<> open_all(const StdioPlan& plan);
  Result<> open_output(const StdioPlan& plan, Output& output);
  Result<> open_input(const StdioPlan& plan);
  Result<> open_terminal();
  void recover_all(const StdioPlan& plan, bool reopen);
  Result<> fetch_terminal();
  Result<> start_output(Output& output);
  Result<> start_terminal_input();
  static Task<> pump_output(std::shared_ptr<Stdio> self, Output& output);
  static Task<> pump_input(std::shared_ptr<Stdio> self);
  static Task<> cut_later(std::weak_ptr<Stdio> weak, std::chrono::nanoseconds wait);
  static Task<> drain(std::shared_ptr<Stdio> self, Output& output);
  static Task<> await_reader(std::shared_ptr<Stdio> self, Output& output);
  void finish(Output& output);
  void drop_writer(Output& output);
  void cut_pumps();

  TaskGroup& group_;
  asio::any_io_executor executor_;
  os::FdHolder& holder_;
  /// Of the names in the holder: "io/<container>/<exec or ->/".
  std::string prefix_;
  std::function<bool()> connected_;
  bool terminal_;
  bool is_exec_;
  /// What the holder has of ours: a drop costs a round trip.
  std::bitset<10> held_;
  Output stdout_{"stdout", {}, {}, {}, {}, {}};
  Output stderr_{"stderr", {}, {}, {}, {}, {}};
  Input stdin_;
  std::string console_path_;
  UniqueFd console_;
  UniqueFd master_;
  bool begun_ = false;
  bool ended_ = false;
  Event closed_;
};

}  // namespace kuasar::task
