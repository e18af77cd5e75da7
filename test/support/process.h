#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::test {

/// A program that a test runs: its argv (argv[0] is looked up in `path` unless it has a '/'), what
/// is added to the test's own environment ("NAME=value"), and the file that its output goes to
/// (appended; /dev/null when empty).
struct ChildSpec {
  std::vector<std::string> argv;
  std::vector<std::string> env;
  std::filesystem::path output;
};

/// A child process of the test, in a process group of its own, so that a Ctrl-C in the terminal
/// reaches the test alone. Owns the process: the destructor kills it with SIGKILL and reaps it.
class Child {
 public:
  static Result<Child> spawn(const ChildSpec& spec);

  Child() = default;
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();

  /// 0 when there is none (never started, or already reaped).
  pid_t pid() const { return pid_; }
  /// Reaps a child that has ended.
  bool alive();
  void signal(int number) const;
  /// The exit code, 128 + n for signal n; absent when the deadline came first. After it the child
  /// is gone and `pid()` is 0.
  std::optional<int> wait(std::chrono::milliseconds deadline);
  /// The exit code of a child that is gone.
  std::optional<int> exit_code() const { return exit_code_; }

 private:
  pid_t pid_ = 0;
  std::optional<int> exit_code_;
};

/// How a program that ran to its end did.
struct Ran {
  int code = 0;
  /// Both its streams.
  std::string output;
};

/// Runs a program to its end; kDeadlineExceeded (and SIGKILL) when it takes longer.
Result<Ran> run_program(std::vector<std::string> argv, std::vector<std::string> env = {},
                        std::chrono::milliseconds deadline = std::chrono::seconds(30));
/// The same; an exit code other than 0 is an error that quotes the output.
Result<> run_checked(std::vector<std::string> argv, std::vector<std::string> env = {},
                     std::chrono::milliseconds deadline = std::chrono::seconds(30));

/// The whole file, empty when there is none. Works on /proc, too.
std::string read_text(const std::filesystem::path& file);
/// Writes a file anew; throws std::runtime_error.
void write_text(const std::filesystem::path& file, const std::string& text);
/// The last `lines` lines of a file.
std::string tail_of(const std::filesystem::path& file, std::size_t lines);

}  // namespace kuasar::test
