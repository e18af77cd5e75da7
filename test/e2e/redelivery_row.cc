#include "e2e/redelivery_row.h"

#include <fmt/format.h>
#include <signal.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <thread>

namespace kuasar::test {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr int kOk = 0;
constexpr int kDeadlineExceeded = 4;

struct Moment {
  std::string point;
  Effect effect;
  bool answered = false;
};

enum class Caller { kOpen, kClosed, kLate };
constexpr Caller kCallers[] = {Caller::kOpen, Caller::kClosed, Caller::kLate};

const char* name_of(Caller caller) {
  switch (caller) {
    case Caller::kOpen: return "open";
    case Caller::kClosed: return "closed";
    case Caller::kLate: return "late";
  }
  return "?";
}

/// What a call gives that nothing disturbs.
struct Undisturbed {
  std::string before;
  std::string answer;
  std::string after;
  std::string log;
  Clock::duration took{};
};

std::vector<Moment> moments_of(const Row& row) {
  const std::string task = fmt::format("task.{}.", row.method);
  std::vector<Moment> moments = {{task + "before", Effect::kNo},
                                 {task + "done", Effect::kYes},
                                 {task + "answered", Effect::kYes, true}};
  if (row.verb != nullptr) {
    // runc is not run for a start (oci/exec_fifo.h).
    const auto steps = std::string_view(row.verb) == "start"
                           ? std::vector<const char*>{"stopped", "held", "resumed", "taken"}
                           : std::vector<const char*>{"spawned", "ended"};
    for (const char* step : steps) {
      moments.push_back({fmt::format("runtime.{}.{}", row.verb, step), row.half_done});
    }
  }
  for (const std::string& point : row.points) moments.push_back({point, row.half_done});
  return moments;
}

/// All cells of a row, in one pod of one daemon that is killed and started again for each.
class RowTrial {
 public:
  RowTrial(Bench& bench, const Row& row) : bench_(bench), row_(row), witness_(bench.connect()) {
    if (!row.fresh) {
      shared_ = bench.new_container(row.reads_stdin);
      bench.bring(*shared_, row.container, *witness_);
    }
    refer();
  }

  /// What was wrong; empty when all was as it should be.
  std::string run(const Moment& moment, Caller caller) {
    complaints_.clear();
    try {
      run_cell(moment, caller);
    } catch (const std::exception& e) {
      complaints_ += fmt::format("{}\n", e.what());
      if (!bench_.daemon().alive()) {
        bench_.daemon().kill();
        bench_.daemon().start();
      }
    }
    bench_.daemon().disarm(moment.point);
    return complaints_;
  }

  /// The undisturbed call's; empty when it was done.
  const std::string& refusal() const { return refusal_; }

  void end() {
    if (shared_) bench_.clean_up(*shared_, *witness_);
    witness_.reset();
  }

 private:
  Subject prepare(TtrpcProbe& probe) {
    Subject subject = shared_ ? *shared_ : bench_.new_container(row_.reads_stdin);
    if (!shared_) bench_.bring(subject, row_.container, probe);
    if (shared_) bench_.skip_log(subject);
    if (row_.exec) {
      bench_.name_exec(subject, row_.terminal);
      bench_.bring_exec(subject, *row_.exec, probe);
    }
    return subject;
  }

  void refer() {
    Subject subject = prepare(*witness_);
    undisturbed_.before = bench_.snapshot(subject, *witness_);
    const auto begun = Clock::now();
    if (row_.ends_meanwhile) ::kill(static_cast<pid_t>(subject.pid), SIGTERM);
    const TtrpcProbe::Reply reply = witness_->call(row_.method, row_.payload(subject));
    undisturbed_.took = Clock::now() - begun;
    if (reply.code != kOk && row_.may_be_refused) {
      refusal_ = reply.message;
    } else {
      payload_of(reply, row_.name);
    }
    if (row_.says != nullptr) bench_.await_log(subject, row_.says);
    undisturbed_.after = bench_.snapshot(subject, *witness_);
    undisturbed_.answer = describe(subject, reply);
    if (row_.ends_meanwhile) undisturbed_.before = undisturbed_.after;
    if (owns(subject)) bench_.clean_up(subject, *witness_);
    undisturbed_.log = bench_.log(subject);
  }

  /// The call was about something that is the cell's own.
  bool owns(const Subject& subject) const { return row_.fresh || !subject.exec.empty(); }

  void run_cell(const Moment& moment, Caller caller) {
    auto connection = bench_.connect();
    Subject subject = prepare(*connection);
    const std::string payload = row_.payload(subject);
    if (!row_.ends_meanwhile) {
      check("seen before", bench_.snapshot(subject, *connection), undisturbed_.before);
    } else {
      bench_.snapshot(subject, *connection);
    }
    const std::uint32_t stream = die_in_it(moment, caller, subject, connection);

    const auto other = bench_.connect();
    const bool served = moment.effect == Effect::kYes || caller == Caller::kOpen;
    if (served || moment.effect == Effect::kNo) {
      see(subject, *other, served ? undisturbed_.after : undisturbed_.before);
    }
    if (connection) check_answer(moment, caller, subject, connection->reply_to(stream));
    if (!served) {
      const TtrpcProbe::Reply again = other->call(row_.method, payload);
      see(subject, *other, undisturbed_.after);
      check("asked again", describe(subject, again), undisturbed_.answer);
    }
    if (std::string_view(row_.method) == "Delete") {
      const TtrpcProbe::Reply again = other->call(row_.method, payload);
      check("deleted twice", describe(subject, again), undisturbed_.answer);
    }
    if (owns(subject)) bench_.clean_up(subject, *other);
    check("log", bench_.log(subject), undisturbed_.log);
  }

  // From the request, whose stream it gives, to the daemon that is there again.
  std::uint32_t die_in_it(const Moment& moment, Caller caller, const Subject& subject,
                          std::unique_ptr<TtrpcProbe>& connection) {
    LoneDaemon& daemon = bench_.daemon();
    // Long enough for the call to come to the moment.
    std::chrono::nanoseconds timeout{};
    if (caller == Caller::kLate) {
      timeout = moment.point.ends_with(".before") ? 150ms : 300ms + 4 * undisturbed_.took;
    }
    daemon.arm(moment.point, "kill");
    const std::uint32_t stream = connection->next_stream();
    connection->send(TtrpcProbe::request(stream, std::string(TtrpcProbe::kTaskService), row_.method,
                                         row_.payload(subject), timeout));
    if (row_.ends_meanwhile) ::kill(static_cast<pid_t>(subject.pid), SIGTERM);
    if (!daemon.died()) throw std::runtime_error("the daemon does not come to the failpoint");
    if (caller == Caller::kClosed) connection.reset();
    std::this_thread::sleep_for(timeout);
    daemon.start();
    return stream;
  }

  void see(Subject& subject, TtrpcProbe& probe, const std::string& wanted) {
    check("seen", bench_.await_snapshot(subject, probe, wanted), wanted);
  }

  void check_answer(const Moment& moment, Caller caller, const Subject& subject,
                    const std::optional<TtrpcProbe::Reply>& reply) {
    if (!reply) throw std::runtime_error("the caller gets no answer");
    if (caller != Caller::kLate || moment.answered) {
      check("answer", describe(subject, *reply), undisturbed_.answer);
    } else if (reply->code != kDeadlineExceeded) {
      check("answer", describe(subject, *reply), "DEADLINE_EXCEEDED");
    }
  }

  std::string describe(const Subject& subject, const TtrpcProbe::Reply& reply) const {
    std::string text = bench_.describe(subject, reply, *row_.answer);
    if (reply.code != kOk || !row_.in_common) return text;
    return row_.in_common(*row_.answer);
  }

  void check(const char* what, const std::string& is, const std::string& wanted) {
    if (is == wanted) return;
    complaints_ += fmt::format("{}: {}\ninstead of: {}\n", what, is, wanted);
  }

  Bench& bench_;
  const Row& row_;
  std::unique_ptr<TtrpcProbe> witness_;
  std::optional<Subject> shared_;
  Undisturbed undisturbed_;
  std::string refusal_;
  std::string complaints_;
};

}  // namespace

std::string run_row(Bench& bench, const Row& row) {
  const auto begun = Clock::now();
  RowTrial trial(bench, row);
  int cells = 0;
  for (const Moment& moment : moments_of(row)) {
    for (const Caller caller : kCallers) {
      const std::size_t output = bench.daemon().output().size();
      ++cells;
      const std::string wrong = trial.run(moment, caller);
      if (wrong.empty()) continue;
      FAIL_CHECK(row.name << ", " << moment.point << ", " << name_of(caller) << "\n"
                          << wrong << bench.daemon().output().substr(output));
    }
  }
  trial.end();
  const std::chrono::duration<double> took = Clock::now() - begun;
  fmt::print("redelivery  {:<28} {:>3} cells  {:>5.1f} s\n", row.name, cells, took.count());
  return trial.refusal();
}

}  // namespace kuasar::test
