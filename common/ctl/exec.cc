#include "ctl/exec.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <cerrno>
#include <climits>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

namespace kuasar::ctl {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

/// The daemon's own limit for an OCI runtime may be an hour; it answers by then.
constexpr auto kStartTimeout = 1h;

std::string new_id() {
  std::random_device random;
  return fmt::format("ctl-{:08x}{:08x}", random(), random());
}

/// A directory of FIFOs for one process; removes it.
class Fifos {
 public:
  explicit Fifos(fs::path dir) : dir_(std::move(dir)) {}
  Fifos(const Fifos&) = delete;
  Fifos& operator=(const Fifos&) = delete;
  ~Fifos() {
    std::error_code ec;
    fs::remove_all(dir_, ec);
  }

  Result<> make(const std::vector<const char*>& names) const {
    if (::mkdir(dir_.c_str(), 0700) != 0) return fail_errno("mkdir", dir_.native());
    for (const char* name : names) {
      const fs::path path = dir_ / name;
      if (::mkfifo(path.c_str(), 0600) != 0) return fail_errno("mkfifo", path.native());
    }
    return {};
  }

  /// Opening with O_NONBLOCK waits for no peer (fifo(7)); reading and writing shall block.
  Result<UniqueFd> open(const char* name, int flags) const {
    const std::string path = dir_ / name;
    UniqueFd fd(::open(path.c_str(), flags | O_NONBLOCK | O_CLOEXEC));
    if (!fd) return fail_errno("open", path);
    if (::fcntl(fd.get(), F_SETFL, flags) != 0) return fail_errno("fcntl", path);
    return fd;
  }

 private:
  fs::path dir_;
};

/// Our terminal in raw mode, if it is one, until the end.
class RawTerminal {
 public:
  explicit RawTerminal(bool wanted) {
    if (!wanted || ::tcgetattr(STDIN_FILENO, &before_) != 0) return;
    termios raw = before_;
    ::cfmakeraw(&raw);
    active_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;
  ~RawTerminal() {
    if (active_) ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }

 private:
  termios before_{};
  bool active_ = false;
};

winsize window() {
  winsize size{};
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::ioctl(fd, TIOCGWINSZ, &size) == 0) break;
  }
  return size;
}

/// One direction, in a thread of its own because our standard streams may be anything, also files
/// that epoll(7) does not take. It ends with its source, with its sink, or with stop().
class Mover {
 public:
  /// `done` is told in that thread whether the sink went first.
  Mover(int in, int out, std::function<void(bool sink_gone)> done)
      : stop_(::eventfd(0, EFD_CLOEXEC)),
        thread_([this, in, out, done = std::move(done)] { done(!move(in, out)); }) {}
  Mover(const Mover&) = delete;
  Mover& operator=(const Mover&) = delete;
  ~Mover() {
    const std::uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
    thread_.join();
  }

 private:
  /// False when it was stopped first. An error or hang-up counts: the read or write tells it.
  bool await(int fd, short events) const {
    std::array<pollfd, 2> ready{{{fd, events, 0}, {stop_.get(), POLLIN, 0}}};
    while (true) {
      if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) return false;
      if (ready[1].revents != 0) return false;
      if (ready[0].revents != 0) return true;
    }
  }

  /// False when the sink is gone.
  bool move(int in, int out) const {
    // What poll(2) calls writable takes at least so much without blocking (pipe(7)).
    std::array<char, PIPE_BUF> buffer{};
    while (await(in, POLLIN)) {
      const ssize_t n = ::read(in, buffer.data(), buffer.size());
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n <= 0) return true;
      ssize_t moved = 0;
      while (moved < n && await(out, POLLOUT)) {
        const ssize_t m = ::write(out, buffer.data() + moved, static_cast<std::size_t>(n - moved));
        if (m < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (m < 0) return false;
        moved += m;
      }
    }
    return true;
  }

  UniqueFd stop_;
  std::thread thread_;
};

/// One run of a command. Lives on the io thread of its daemon's connection.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Daemon& daemon, const std::string& container, const Args& args)
      : daemon_(daemon),
        container_(container),
        args_(args),
        id_(new_id()),
        fifos_(daemon.dir() / "ctl" / id_),
        group_(daemon.io().get_executor()),
        signals_(daemon.io(), SIGINT, SIGTERM, SIGHUP) {}

  Task<Result<int>> run() {
    Result<int> code = co_await run_started();
    stopped_.set();
    input_.reset();
    output_.clear();
    group_.cancel();
    co_await group_.join();
    if (interrupted_.is_set()) co_return result_;
    co_return code;
  }

 private:
  Task<Result<int>> run_started() {
    CO_CHECK(prepare());
    group_.spawn(watch_signals());
    api::StartExecRequest request = start_request();
    CO_TRY([[maybe_unused]] const api::StartExecResponse started,
           co_await daemon_.client().call<api::StartExecResponse>(Daemon::kService, "StartExec",
                                                                  request, kStartTimeout));
    const RawTerminal raw(args_.terminal && args_.input);
    CO_CHECK(begin_streams());
    if (args_.terminal) group_.spawn(watch_window());
    group_.spawn(await_end());
    std::vector<const Event*> ends = {&ended_, &interrupted_};
    co_await Event::wait_any(std::move(ends));
    // Its output is complete when the daemon has let go of the FIFOs.
    std::vector<const Event*> rest = {&drained_, &interrupted_};
    if (result_) co_await Event::wait_any(std::move(rest));
    co_return result_;
  }

  Result<> prepare() {
    std::vector<const char*> names{"stdout"};
    if (args_.input) names.push_back("stdin");
    if (!args_.terminal) names.push_back("stderr");
    Result<> made = fifos_.make(names);
    if (!made && made.error().code == Code::kNotFound) {
      return fail(Code::kFailedPrecondition,
                  "{}; --socket must name the socket in the daemon's own directory",
                  made.error().message);
    }
    CHECK_OK(made);
    TRY(stdout_, fifos_.open("stdout", O_RDONLY));
    if (!args_.terminal) {
      TRY(stderr_, fifos_.open("stderr", O_RDONLY));
    }
    return {};
  }

  api::StartExecRequest start_request() const {
    api::StartExecRequest request;
    request.set_id(id_);
    request.set_container(container_);
    for (const std::string& word : args_.argv) request.add_args(word);
    if (args_.terminal) {
      const char* term = ::getenv("TERM");
      request.add_env(fmt::format("TERM={}", term != nullptr ? term : "xterm"));
      const winsize size = window();
      request.set_width(size.ws_col);
      request.set_height(size.ws_row);
    }
    for (const std::string& variable : args_.env) request.add_env(variable);
    request.set_cwd(args_.cwd);
    request.set_terminal(args_.terminal);
    return request;
  }

  // It runs, so that the daemon has the other ends: from here an end of file is one.
  Result<> begin_streams() {
    add_output(stdout_.get(), STDOUT_FILENO);
    if (stderr_) add_output(stderr_.get(), STDERR_FILENO);
    if (!args_.input) return {};
    Result<UniqueFd> opened = fifos_.open("stdin", O_WRONLY);
    // It has ended already.
    if (!opened && opened.error().err == ENXIO) return {};
    TRY(stdin_, std::move(opened));
    input_ = std::make_unique<Mover>(
        STDIN_FILENO, stdin_.get(), [weak = weak_from_this(), &io = daemon_.io()](bool) {
          asio::post(io, [weak] {
            if (const auto self = weak.lock(); self && !self->stopped_.is_set()) self->end_input();
          });
        });
    return {};
  }

  void add_output(int fifo, int ours) {
    ++open_outputs_;
    const auto done = [weak = weak_from_this(), &io = daemon_.io()](bool sink_gone) {
      asio::post(io, [weak, sink_gone] {
        if (const auto self = weak.lock()) self->end_output(sink_gone);
      });
    };
    output_.push_back(std::make_unique<Mover>(fifo, ours, done));
  }

  void end_input() {
    stdin_.reset();
    group_.spawn(close_input());
  }

  void end_output(bool sink_gone) {
    if (sink_gone) interrupt("our output was closed");
    if (--open_outputs_ == 0) drained_.set();
  }

  void interrupt(std::string_view why) {
    if (interrupted_.is_set()) return;
    result_ = fail(Code::kCancelled, "{}: the command was ended", why);
    interrupted_.set();
    // What waits for the daemon need not wait any longer.
    daemon_.client().close();
  }

  Task<> await_end() {
    api::WaitExecRequest request;
    request.set_id(id_);
    request.set_container(container_);
    auto answer = co_await daemon_.client().call<api::WaitExecResponse>(Daemon::kService,
                                                                        "WaitExec", request, 0s);
    if (interrupted_.is_set()) co_return;
    if (answer) {
      result_ = static_cast<int>(answer->exit_status());
    } else {
      result_ = fail(std::move(answer).error());
    }
    ended_.set();
  }

  Task<> close_input() {
    api::CloseExecInputRequest request;
    request.set_id(id_);
    request.set_container(container_);
    // One that has ended has no input any more.
    (void)co_await daemon_.client().call<api::CloseExecInputResponse>(
        Daemon::kService, "CloseExecInput", request, Daemon::kTimeout);
  }

  Task<> watch_signals() {
    boost::system::error_code ec;
    const int signal = co_await signals_.async_wait(as_result(ec));
    if (!ec) interrupt(::strsignal(signal));
  }

  Task<> watch_window() {
    asio::signal_set changed(daemon_.io(), SIGWINCH);
    while (!stopped_.is_set()) {
      boost::system::error_code ec;
      co_await changed.async_wait(as_result(ec));
      if (ec) co_return;
      api::ResizeExecRequest request;
      request.set_id(id_);
      request.set_container(container_);
      const winsize size = window();
      request.set_width(size.ws_col);
      request.set_height(size.ws_row);
      (void)co_await daemon_.client().call<api::ResizeExecResponse>(Daemon::kService, "ResizeExec",
                                                                    request, Daemon::kTimeout);
    }
  }

  Daemon& daemon_;
  const std::string container_;
  const Args& args_;
  const std::string id_;
  Fifos fifos_;
  UniqueFd stdin_;
  UniqueFd stdout_;
  UniqueFd stderr_;
  std::vector<std::unique_ptr<Mover>> output_;
  std::unique_ptr<Mover> input_;
  int open_outputs_ = 0;
  Event ended_;
  /// All output was moved.
  Event drained_;
  Event interrupted_;
  Event stopped_;
  Result<int> result_ = 0;
  TaskGroup group_;
  asio::signal_set signals_;
};

}  // namespace

Result<int> run_exec(Daemon& daemon, const std::string& container, const Args& args) {
  ::signal(SIGPIPE, SIG_IGN);
  auto session = std::make_shared<Session>(daemon, container, args);
  Result<int> code = daemon.run(session->run());
  session.reset();
  // The daemon forgets the process, or ends it.
  daemon.client().close();
  return code;
}

}  // namespace kuasar::ctl
