#include "task/stdio.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "base/log.h"
#include "os/fifo.h"
#include "os/pty.h"
#include "os/selinux.h"

namespace kuasar::task {
namespace {

constexpr std::chrono::milliseconds kDrainPoll(5);

Result<> give_away(int fd, uid_t uid, gid_t gid, const std::string& path) {
  if (uid == 0 && gid == 0) return {};
  if (::fchown(fd, uid, gid) != 0) return fail_errno("chown", path);
  return {};
}

constexpr std::array<std::string_view, 10> kHeldNames{
    "stdout.r",    "stdout.w", "stdout.pipe", "stderr.r", "stderr.w",
    "stderr.pipe", "stdin.r",  "stdin.w",     "console",  "pty"};

std::size_t index_of(std::string_view held) {
  return static_cast<std::size_t>(std::find(kHeldNames.begin(), kHeldNames.end(), held) -
                                  kHeldNames.begin());
}

// A socket's path is limited to 107 bytes, ids are not: the name is a digest of them.
std::string console_name(const std::string& container, const std::string& exec) {
  return fmt::format("{:016x}", std::hash<std::string>()(container + "/" + exec));
}

}  // namespace

Stdio::Stdio(TaskGroup& group, asio::any_io_executor executor, os::FdHolder& holder,
             const StdioPlan& plan)
    : group_(group),
      executor_(std::move(executor)),
      holder_(holder),
      prefix_(fmt::format("io/{}/{}/", plan.container, plan.exec.empty() ? "-" : plan.exec)),
      connected_(plan.connected),
      terminal_(plan.terminal),
      is_exec_(!plan.exec.empty()) {
  if (terminal_) console_path_ = plan.console_dir + "/" + console_name(plan.container, plan.exec);
}

Stdio::~Stdio() = default;

Result<std::shared_ptr<Stdio>> Stdio::open(TaskGroup& group, asio::any_io_executor executor,
                                           os::FdHolder& holder, const StdioPlan& plan) {
  std::shared_ptr<Stdio> stdio(new Stdio(group, std::move(executor), holder, plan));
  if (Result<> opened = stdio->open_all(plan); !opened) {
    stdio->close();
    return fail(std::move(opened).error());
  }
  return stdio;
}

std::shared_ptr<Stdio> Stdio::recover(TaskGroup& group, asio::any_io_executor executor,
                                      os::FdHolder& holder, const StdioPlan& plan, bool reopen) {
  std::shared_ptr<Stdio> stdio(new Stdio(group, std::move(executor), holder, plan));
  stdio->recover_all(plan, reopen);
  return stdio;
}

Result<> Stdio::hold(std::string_view what, int fd) {
  Result<> held = holder_.hold(prefix_ + std::string(what), fd);
  if (!held) return fail(std::move(held).error().context("keep {}", what));
  held_.set(index_of(what));
  return {};
}

void Stdio::take(std::string_view what, UniqueFd& fd) {
  Result<UniqueFd> held = holder_.get(prefix_ + std::string(what));
  if (!held) return;
  fd = std::move(*held);
  held_.set(index_of(what));
}

void Stdio::drop(std::string_view what) {
  if (!held_.test(index_of(what))) return;
  held_.reset(index_of(what));
  holder_.drop(prefix_ + std::string(what));
}

// A terminal has one output for both.
const std::string& Stdio::path_of(const StdioPlan& plan, const Output& output) const {
  static const std::string kNone;
  if (&output == &stdout_) return plan.paths.stdout_path;
  return terminal_ ? kNone : plan.paths.stderr_path;
}

Result<> Stdio::open_all(const StdioPlan& plan) {
  CHECK_OK(open_output(plan, stdout_));
  CHECK_OK(open_output(plan, stderr_));
  CHECK_OK(open_input(plan));
  return terminal_ ? open_terminal() : Result<>();
}

Result<> Stdio::open_output(const StdioPlan& plan, Output& output) {
  const std::string& path = path_of(plan, output);
  if (path.empty()) return {};
  const std::string name = output.name;
  TRY(os::OutputFifo fifo, os::open_output_fifo(path));
  output.reader = std::move(fifo.reader);
  output.writer = std::move(fifo.writer);
  CHECK_OK(give_away(output.writer.get(), plan.uid, plan.gid, path));
  CHECK_OK(os::set_selinux_label(output.writer.get(), plan.label));
  CHECK_OK(hold(name + ".r", output.reader.get()));
  CHECK_OK(hold(name + ".w", output.writer.get()));
  if (terminal_) return {};
  if (!plan.pump) {
    output.process_end = std::move(fifo.workload);
    return {};
  }
  TRY(os::OutputPipe pipe, os::make_output_pipe());
  CHECK_OK(give_away(pipe.workload.get(), plan.uid, plan.gid, "pipe"));
  CHECK_OK(hold(name + ".pipe", pipe.reader.get()));
  output.source = std::move(pipe.reader);
  output.process_end = std::move(pipe.workload);
  return {};
}

Result<> Stdio::open_input(const StdioPlan& plan) {
  const std::string& path = plan.paths.stdin_path;
  if (path.empty()) return {};
  TRY(os::InputFifo fifo, os::open_input_fifo(path, terminal_));
  CHECK_OK(give_away(fifo.writer.get(), plan.uid, plan.gid, path));
  CHECK_OK(os::set_selinux_label(fifo.writer.get(), plan.label));
  stdin_.writer = std::move(fifo.writer);
  CHECK_OK(hold("stdin.w", stdin_.writer.get()));
  if (!terminal_) {
    stdin_.process_end = std::move(fifo.reader);
    return {};
  }
  stdin_.reader = std::move(fifo.reader);
  return hold("stdin.r", stdin_.reader.get());
}

Result<> Stdio::open_terminal() {
  TRY(console_, os::listen_console(console_path_));
  return hold("console", console_.get());
}

void Stdio::recover_all(const StdioPlan& plan, bool reopen) {
  for (Output* output : {&stdout_, &stderr_}) {
    const std::string name = output->name;
    take(name + ".r", output->reader);
    take(name + ".w", output->writer);
    take(name + ".pipe", output->source);
    if (!reopen || path_of(plan, *output).empty() || output->reader) continue;
    if (Result<> opened = open_output(plan, *output); !opened) {
      log::warning({"", plan.container}, "recovery of {}: {}", name, opened.error().message);
    }
    // The process has its own end; one that had a pipe has lost it.
    output->process_end.reset();
  }
  take("stdin.r", stdin_.reader);
  take("stdin.w", stdin_.writer);
  take("console", console_);
  take("pty", master_);
}

void Stdio::drop_process_ends() {
  stdin_.process_end.reset();
  stdout_.process_end.reset();
  stderr_.process_end.reset();
}

Result<> Stdio::begin() {
  if (begun_) return {};
  drop_process_ends();
  if (terminal_) {
    if (!master_) CHECK_OK(fetch_terminal());
    TRY(stdout_.source, os::duplicate(master_.get()));
    if (!stdout_.writer) {
      // Nobody reads it, but a terminal that is not read blocks its processes.
      stdout_.writer.reset(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    }
    CHECK_OK(start_terminal_input());
  }
  begun_ = true;
  CHECK_OK(start_output(stdout_));
  return start_output(stderr_);
}

Result<> Stdio::fetch_terminal() {
  if (!console_) return fail(Code::kNotFound, "the terminal of the process is lost");
  // In place of the listener: a daemon that dies now leaves the terminal in the connection.
  TRY(console_, os::accept_console(console_.get()));
  CHECK_OK(hold("console", console_.get()));
  TRY(master_, os::receive_console(console_.get()));
  CHECK_OK(hold("pty", master_.get()));
  drop("console");
  console_.reset();
  ::unlink(console_path_.c_str());
  return {};
}

Result<> Stdio::start_terminal_input() {
  if (!stdin_.reader) return {};
  TRY(UniqueFd out, os::duplicate(master_.get()));
  stdin_.pump = std::make_shared<os::Pump>(executor_, std::move(stdin_.reader), std::move(out));
  group_.spawn(pump_input(shared_from_this()));
  return {};
}

Result<> Stdio::start_output(Output& output) {
  if (!output.source || !output.writer) return {};
  output.pump =
      std::make_shared<os::Pump>(executor_, std::move(output.source), std::move(output.writer));
  group_.spawn(pump_output(shared_from_this(), output));
  return {};
}

Task<> Stdio::pump_output(std::shared_ptr<Stdio> self, Output& output) {
  const auto pump = output.pump;
  const os::Pump::End end = co_await pump->run();
  output.pump.reset();
  // Cancelled: this daemon ends, the next one goes on with what is held.
  if (end == os::Pump::End::kCancelled || self->closed_.is_set()) co_return;
  output.writer = pump->take_out();
  self->drop(std::string(output.name) + ".pipe");
  self->finish(output);
}

Task<> Stdio::pump_input(std::shared_ptr<Stdio> self) {
  const auto pump = self->stdin_.pump;
  const os::Pump::End end = co_await pump->run();
  self->stdin_.pump.reset();
  if (end == os::Pump::End::kCancelled || self->closed_.is_set()) co_return;
  self->drop("stdin.r");
}

Result<> Stdio::resize(std::uint16_t width, std::uint16_t height) const {
  if (!master_) return fail(Code::kFailedPrecondition, "the process has no terminal");
  return os::set_window_size(master_.get(), width, height);
}

void Stdio::close_stdin() {
  if (!stdin_.writer) return;
  stdin_.writer.reset();
  drop("stdin.w");
}

void Stdio::process_ended(std::chrono::nanoseconds since) {
  if (ended_) return;
  ended_ = true;
  close_stdin();
  if (stdin_.pump) stdin_.pump->cut();
  for (Output* output : {&stdout_, &stderr_}) {
    if (!output->pump) finish(*output);
  }
  if (is_exec_ || (!stdout_.pump && !stderr_.pump)) return;
  const std::chrono::nanoseconds linger(kLinger);
  // A clock that was set back must not make it longer.
  const auto left = std::clamp<std::chrono::nanoseconds>(linger - since, {}, linger);
  group_.spawn(cut_later(weak_from_this(), left));
}

Task<> Stdio::cut_later(std::weak_ptr<Stdio> weak, std::chrono::nanoseconds wait) {
  // In steps: it ends with the last pump, and does not keep the object alive.
  const auto until = std::chrono::steady_clock::now() + wait;
  while (const auto self = weak.lock()) {
    if (self->closed_.is_set() || (!self->stdout_.pump && !self->stderr_.pump)) co_return;
    const auto left = until - std::chrono::steady_clock::now();
    if (left.count() <= 0) {
      self->cut_pumps();
      co_return;
    }
    co_await self->closed_.wait_for(
        std::min<std::chrono::nanoseconds>(left, std::chrono::milliseconds(500)));
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
  }
}

void Stdio::cut_pumps() {
  for (const auto& pump : {stdout_.pump, stderr_.pump, stdin_.pump}) {
    if (pump) pump->cut();
  }
}

void Stdio::finish(Output& output) {
  output.finished = true;
  if (!ended_ || !output.writer || output.awaiting || !connected_()) return;
  // Only with ours gone one sees whether there is another; what is unread stays in the FIFO.
  output.reader.reset();
  drop(std::string(output.name) + ".r");
  if (os::has_reader(output.writer.get())) return drop_writer(output);
  output.awaiting = true;
  group_.spawn(await_reader(shared_from_this(), output));
}

Task<> Stdio::await_reader(std::shared_ptr<Stdio> self, Output& output) {
  const auto until = std::chrono::steady_clock::now() + kReadPatience;
  while (output.writer && !os::has_reader(output.writer.get()) &&
         std::chrono::steady_clock::now() < until) {
    const bool closed = co_await self->closed_.wait_for(kDrainPoll);
    if (closed) co_return;
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
  }
  self->drop_writer(output);
}

void Stdio::drop_writer(Output& output) {
  output.writer.reset();
  drop(std::string(output.name) + ".w");
}

void Stdio::reader_came() {
  if (!ended_) return;
  for (Output* output : {&stdout_, &stderr_}) {
    if (!output->finished || !output->writer || output->draining) continue;
    output->draining = true;
    group_.spawn(drain(shared_from_this(), *output));
  }
}

// Our writer goes once containerd has read everything, or has had the time to.
Task<> Stdio::drain(std::shared_ptr<Stdio> self, Output& output) {
  const auto until = std::chrono::steady_clock::now() + kReadPatience;
  while (os::unread_bytes(output.reader.get()) > 0 && std::chrono::steady_clock::now() < until) {
    const bool closed = co_await self->closed_.wait_for(kDrainPoll);
    if (closed) co_return;
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
  }
  output.draining = false;
  self->drop_writer(output);
}

Task<> Stdio::read_within(std::shared_ptr<Stdio> self, std::chrono::nanoseconds patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  while (self->stdout_.draining || self->stderr_.draining) {
    if (self->closed_.is_set() || std::chrono::steady_clock::now() >= until) co_return;
    co_await self->closed_.wait_for(kDrainPoll);
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) co_return;
  }
}

void Stdio::close() {
  if (closed_.is_set()) return;
  if (console_ && !console_path_.empty()) ::unlink(console_path_.c_str());
  for (const std::string_view what : kHeldNames) drop(what);
  forsake();
}

void Stdio::forsake() {
  if (closed_.is_set()) return;
  closed_.set();
  held_.reset();
  cut_pumps();
  drop_process_ends();
  for (Output* output : {&stdout_, &stderr_}) {
    output->reader.reset();
    output->writer.reset();
    output->source.reset();
  }
  stdin_.reader.reset();
  stdin_.writer.reset();
  console_.reset();
  master_.reset();
}

}  // namespace kuasar::task
