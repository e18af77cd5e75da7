#include <catch2/catch_test_macros.hpp>

#include "oci/runtime_argv.h"

namespace kuasar::oci {
namespace {

GlobalFlags global() {
  GlobalFlags flags;
  flags.binary = "/usr/sbin/runc";
  flags.root = "/run/k/oci";
  flags.log_file = "/run/k/c/runtime.log";
  return flags;
}

CreateFlags create() {
  CreateFlags flags;
  flags.bundle = "/run/k/c";
  flags.pid_file = "/run/k/c/init.pid";
  return flags;
}

}  // namespace

TEST_CASE("oci argv: create") {
  CHECK(create_argv(global(), create(), "abc") ==
        Argv{"/usr/sbin/runc", "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log",
             "--log-format", "json", "create", "--bundle", "/run/k/c", "--pid-file",
             "/run/k/c/init.pid", "abc"});
}

TEST_CASE("oci argv: create with every flag") {
  GlobalFlags flags = global();
  flags.systemd_cgroup = true;
  CreateFlags all = create();
  all.no_pivot = true;
  all.no_new_keyring = true;
  CHECK(create_argv(flags, all, "abc") ==
        Argv{"/usr/sbin/runc", "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log",
             "--log-format", "json", "--systemd-cgroup", "create", "--bundle", "/run/k/c",
             "--pid-file", "/run/k/c/init.pid", "--no-pivot", "--no-new-keyring", "abc"});
}

TEST_CASE("oci argv: create with a terminal") {
  CreateFlags flags = create();
  flags.console_socket = "/run/k/pty/1";
  CHECK(create_argv(global(), flags, "abc") ==
        Argv{"/usr/sbin/runc", "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log",
             "--log-format", "json", "create", "--bundle", "/run/k/c", "--pid-file",
             "/run/k/c/init.pid", "--console-socket", "/run/k/pty/1", "abc"});
}

TEST_CASE("oci argv: exec, without and with a terminal") {
  ExecFlags flags;
  flags.process_file = "/run/k/c/exec-e.json";
  flags.pid_file = "/run/k/c/exec-e.pid";
  CHECK(exec_argv(global(), flags, "abc") ==
        Argv{"/usr/sbin/runc", "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log",
             "--log-format", "json", "exec", "--detach", "--process", "/run/k/c/exec-e.json",
             "--pid-file", "/run/k/c/exec-e.pid", "abc"});
  flags.console_socket = "/run/k/pty/1";
  CHECK(exec_argv(global(), flags, "abc") ==
        Argv{"/usr/sbin/runc", "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log",
             "--log-format", "json", "exec", "--detach", "--process", "/run/k/c/exec-e.json",
             "--pid-file", "/run/k/c/exec-e.pid", "--console-socket", "/run/k/pty/1", "abc"});
}

TEST_CASE("oci argv: start and delete") {
  CHECK(start_argv(global(), "abc") == Argv{"/usr/sbin/runc", "--root", "/run/k/oci", "--log",
                                            "/run/k/c/runtime.log", "--log-format", "json", "start",
                                            "abc"});
  CHECK(delete_argv(global(), "abc", false) == Argv{"/usr/sbin/runc", "--root", "/run/k/oci",
                                                    "--log", "/run/k/c/runtime.log", "--log-format",
                                                    "json", "delete", "abc"});
  CHECK(delete_argv(global(), "abc", true) == Argv{"/usr/sbin/runc", "--root", "/run/k/oci",
                                                   "--log", "/run/k/c/runtime.log", "--log-format",
                                                   "json", "delete", "--force", "abc"});
}

}  // namespace kuasar::oci
