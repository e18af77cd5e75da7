#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "base/error.h"
#include "bench/samples.h"

namespace kuasar::bench {

/// What is measured, and where.
struct Options {
  std::filesystem::path containerd = "/run/containerd/containerd.sock";
  /// Our runtime handler, and the handler of containerd's own shim with the same OCI runtime.
  std::string handler = "kuasar-runc";
  std::string peer = "runc";
  /// The ctl.sock of our daemon.
  std::filesystem::path daemon = "/run/kuasar-runc/ctl.sock";
  /// An image on the node that has sh and sleep.
  std::string image;
  std::string cgroup_parent;
  /// Rounds of A B B A.
  int rounds = 15;
  /// The most pods at a time of our side; smaller rows stay comparable, those above are skipped.
  int most_pods = 500;
  /// With it the daemon is killed with -9 (pods live on): whoever runs it starts it again, if not
  /// `restart`, called after the kill.
  bool kill = false;
  std::function<Result<>()> restart;
  /// Scratch space for logs; made and removed by the caller.
  std::filesystem::path scratch;
  /// Told what goes on: a phase, and what it did.
  std::function<void(const std::string& phase, const std::string& words)> progress;
};

/// Measures everything that the options allow. Every pod that it made is removed again, also after
/// a failure. An error means that nothing could be measured (no containerd, no daemon, no handler);
/// an operation that fails is in the samples.
Result<Samples> measure(const Options& options);

}  // namespace kuasar::bench
