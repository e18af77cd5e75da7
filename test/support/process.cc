#include "support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "base/unique_fd.h"

extern char** environ;

namespace kuasar::test {
namespace {

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> result;
  result.reserve(strings.size() + 1);
  for (const std::string& string : strings) result.push_back(const_cast<char*>(string.c_str()));
  result.push_back(nullptr);
  return result;
}

// The test's own environment with `changes` put over it.
std::vector<std::string> merged_environment(const std::vector<std::string>& changes) {
  std::vector<std::string> result = changes;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string line = *entry;
    const std::string name = line.substr(0, line.find('=') + 1);
    bool replaced = false;
    for (const std::string& change : changes) replaced = replaced || change.starts_with(name);
    if (!replaced) result.push_back(line);
  }
  return result;
}

// posix_spawnp searches the caller's PATH; the child's is the one that is meant.
std::string resolve(const std::string& program, const std::vector<std::string>& env) {
  if (program.find('/') != std::string::npos) return program;
  for (const std::string& line : env) {
    if (!line.starts_with("PATH=")) continue;
    std::istringstream entries(line.substr(5));
    for (std::string dir; std::getline(entries, dir, ':');) {
      const std::string candidate = dir + "/" + program;
      if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    }
    break;
  }
  return program;
}

int decode(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

Result<Child> Child::spawn(const ChildSpec& spec) {
  const std::vector<std::string> env = merged_environment(spec.env);
  const std::string program = resolve(spec.argv.front(), env);
  const std::string output = spec.output.empty() ? "/dev/null" : spec.output.string();

  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
  ::posix_spawn_file_actions_adddup2(&actions, 1, 2);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);

  Child child;
  std::vector<char*> argv = pointers(spec.argv);
  std::vector<char*> envp = pointers(env);
  const int error =
      ::posix_spawn(&child.pid_, program.c_str(), &actions, &attributes, argv.data(), envp.data());
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    child.pid_ = 0;
    return fail(Error::from_errno_value(error, "start", program));
  }
  return child;
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), exit_code_(std::exchange(other.exit_code_, {})) {}

Child& Child::operator=(Child&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(exit_code_, other.exit_code_);
  return *this;
}

Child::~Child() {
  if (pid_ == 0) return;
  signal(SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

bool Child::alive() {
  return pid_ != 0 && !wait(std::chrono::milliseconds(0)).has_value();
}

void Child::signal(int number) const {
  if (pid_ != 0) ::kill(pid_, number);
}

std::optional<int> Child::wait(std::chrono::milliseconds deadline) {
  if (pid_ == 0) return exit_code_;
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  pollfd ended{pidfd.get(), POLLIN, 0};
  ::poll(&ended, 1, static_cast<int>(deadline.count()));
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = 0;
  exit_code_ = decode(status);
  return exit_code_;
}

Result<Ran> run_program(std::vector<std::string> argv, std::vector<std::string> env,
                        std::chrono::milliseconds deadline) {
  char name[] = "/tmp/kuasar-run.XXXXXX";
  const UniqueFd file(::mkostemp(name, O_CLOEXEC));
  if (!file) return fail_errno("create", name);
  auto child = Child::spawn({argv, std::move(env), name});
  std::optional<int> code;
  if (child) code = child->wait(deadline);
  Ran ran{code.value_or(-1), read_text(name)};
  ::unlink(name);
  if (!child) return fail(std::move(child).error());
  if (!code) {
    return fail(Code::kDeadlineExceeded, "{} did not end within {} ms: {}", argv.front(),
                deadline.count(), ran.output);
  }
  return ran;
}

Result<> run_checked(std::vector<std::string> argv, std::vector<std::string> env,
                     std::chrono::milliseconds deadline) {
  std::string words;
  for (const std::string& word : argv) words += (words.empty() ? "" : " ") + word;
  TRY(const Ran ran, run_program(std::move(argv), std::move(env), deadline));
  if (ran.code != 0) {
    return fail(Code::kUnknown, "`{}` ended with {}: {}", words, ran.code, ran.output);
  }
  return {};
}

std::string read_text(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream << text;
  stream.close();
  if (!stream) throw std::runtime_error("cannot write " + file.string());
}

std::string tail_of(const std::filesystem::path& file, std::size_t lines) {
  const std::string text = read_text(file);
  std::size_t start = text.size();
  for (std::size_t found = 0; start > 0; --start) {
    if (text[start - 1] == '\n' && start != text.size() && ++found == lines) break;
  }
  return text.substr(start);
}

}  // namespace kuasar::test
