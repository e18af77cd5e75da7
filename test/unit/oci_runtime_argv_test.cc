#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <string>

#include "oci/runtime_argv.h"

namespace kuasar::oci {
namespace {

// runc, crun and youki (liboci-cli) take the same words, and differ in their name alone.
std::string runtime() {
  return GENERATE("/usr/sbin/runc", "/usr/bin/crun", "/usr/local/bin/youki");
}

GlobalFlags global(const std::string& binary) {
  GlobalFlags flags;
  flags.binary = binary;
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
  const std::string name = runtime();
  CHECK(create_argv(global(name), create(), "abc") ==
        Argv{name, "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log", "--log-format", "json",
             "create", "--bundle", "/run/k/c", "--pid-file", "/run/k/c/init.pid", "abc"});
}

TEST_CASE("oci argv: create with every flag") {
  const std::string name = runtime();
  GlobalFlags flags = global(name);
  flags.systemd_cgroup = true;
  CreateFlags all = create();
  all.no_pivot = true;
  all.no_new_keyring = true;
  CHECK(create_argv(flags, all, "abc") ==
        Argv{name, "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log", "--log-format", "json",
             "--systemd-cgroup", "create", "--bundle", "/run/k/c", "--pid-file",
             "/run/k/c/init.pid", "--no-pivot", "--no-new-keyring", "abc"});
}

TEST_CASE("oci argv: create with a terminal") {
  const std::string name = runtime();
  CreateFlags flags = create();
  flags.console_socket = "/run/k/pty/1";
  CHECK(create_argv(global(name), flags, "abc") ==
        Argv{name, "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log", "--log-format", "json",
             "create", "--bundle", "/run/k/c", "--pid-file", "/run/k/c/init.pid",
             "--console-socket", "/run/k/pty/1", "abc"});
}

TEST_CASE("oci argv: exec, without and with a terminal") {
  const std::string name = runtime();
  ExecFlags flags;
  flags.process_file = "/run/k/c/exec-e.json";
  flags.pid_file = "/run/k/c/exec-e.pid";
  CHECK(exec_argv(global(name), flags, "abc") ==
        Argv{name, "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log", "--log-format", "json",
             "exec", "--detach", "--process", "/run/k/c/exec-e.json", "--pid-file",
             "/run/k/c/exec-e.pid", "abc"});
  flags.console_socket = "/run/k/pty/1";
  CHECK(exec_argv(global(name), flags, "abc") ==
        Argv{name, "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log", "--log-format", "json",
             "exec", "--detach", "--process", "/run/k/c/exec-e.json", "--pid-file",
             "/run/k/c/exec-e.pid", "--console-socket", "/run/k/pty/1", "abc"});
}

TEST_CASE("oci argv: checkpoint, with nothing and with everything") {
  const std::string name = "/usr/sbin/runc";
  CheckpointFlags flags;
  flags.image_path = "/image";
  flags.work_path = "/run/k/c/criu";
  CHECK(checkpoint_argv(global(name), flags, "abc") ==
        Argv{name, "--root", "/run/k/oci", "--log", "/run/k/c/runtime.log", "--log-format", "json",
             "checkpoint", "--image-path", "/image", "--work-path", "/run/k/c/criu", "abc"});
  flags.leave_running = true;
  flags.open_tcp = true;
  flags.external_unix_sockets = true;
  flags.shell_job = true;
  flags.file_locks = true;
  flags.empty_namespaces = {"network"};
  flags.cgroups_mode = "soft";
  CHECK(checkpoint_argv(global(name), flags, "abc") == Argv{name,
                                                            "--root",
                                                            "/run/k/oci",
                                                            "--log",
                                                            "/run/k/c/runtime.log",
                                                            "--log-format",
                                                            "json",
                                                            "checkpoint",
                                                            "--image-path",
                                                            "/image",
                                                            "--work-path",
                                                            "/run/k/c/criu",
                                                            "--leave-running",
                                                            "--tcp-established",
                                                            "--ext-unix-sk",
                                                            "--shell-job",
                                                            "--file-locks",
                                                            "--empty-ns",
                                                            "network",
                                                            "--manage-cgroups-mode",
                                                            "soft",
                                                            "abc"});
}

TEST_CASE("oci argv: start and delete") {
  const std::string name = runtime();
  CHECK(start_argv(global(name), "abc") == Argv{name, "--root", "/run/k/oci", "--log",
                                                "/run/k/c/runtime.log", "--log-format", "json",
                                                "start", "abc"});
  CHECK(delete_argv(global(name), "abc", false) == Argv{name, "--root", "/run/k/oci", "--log",
                                                        "/run/k/c/runtime.log", "--log-format",
                                                        "json", "delete", "abc"});
  CHECK(delete_argv(global(name), "abc", true) == Argv{name, "--root", "/run/k/oci", "--log",
                                                       "/run/k/c/runtime.log", "--log-format",
                                                       "json", "delete", "--force", "abc"});
}

}  // namespace kuasar::oci
