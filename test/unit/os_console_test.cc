#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "os/fifo.h"
#include "os/local_fd_holder.h"
#include "os/pty.h"

namespace kuasar::os {

TEST_CASE("fd holder: names, replacement, limits") {
  LocalFdHolder holder;
  const OutputPipe first = make_output_pipe().value();
  const OutputPipe second = make_output_pipe().value();
  REQUIRE(holder.hold("io/c/-/x", first.reader.get()));
  REQUIRE(holder.hold("io/c/-/x", second.reader.get()));
  CHECK(holder.size() == 1);
  REQUIRE(::write(second.workload.get(), "2", 1) == 1);
  const UniqueFd held = holder.get("io/c/-/x").value();
  CHECK((::fcntl(held.get(), F_GETFD) & FD_CLOEXEC) != 0);
  char c = 0;
  CHECK(::read(held.get(), &c, 1) == 1);
  CHECK(c == '2');
  holder.drop("io/c/-/x");
  holder.drop("io/c/-/x");
  CHECK(holder.get("io/c/-/x").error().code == Code::kNotFound);
  CHECK(holder.hold("", first.reader.get()).error().code == Code::kInvalidArgument);
  const std::string longest(FdHolder::kMaxHeldName, 'x');
  CHECK(holder.hold(longest, first.reader.get()));
  CHECK(holder.hold(longest + "x", first.reader.get()).error().code == Code::kInvalidArgument);
  CHECK_FALSE(holder.hold("closed", -1).has_value());
  CHECK(holder.get("closed").error().code == Code::kNotFound);
}

TEST_CASE("console: a path that is too long, a runtime that sends nothing") {
  const std::string path = "/tmp/kuasar-console-" + std::to_string(::getpid());
  CHECK(listen_console("/tmp/" + std::string(103, 'x')).error().code == Code::kInvalidArgument);
  const auto listener = listen_console(path);
  REQUIRE(listener);
  CHECK(accept_console(listener->get()).error().code == Code::kNotFound);
  // One that was left behind is in nobody's way.
  CHECK(listen_console(path));
  ::unlink(path.c_str());
}

}  // namespace kuasar::os
