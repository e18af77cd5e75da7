#pragma once

#include <memory>

#include "e2e/hostile_daemon.h"
#include "support/controller_client.h"

namespace kuasar::test {

/// A daemon without containerd that has one pod, "witness": what a hostile call must leave as it
/// was.
struct WitnessStage {
  CgroupParent cgroup;
  LoneDaemon daemon;
  std::unique_ptr<ControllerClient> controller;

  /// `config` is the text of the daemon's configuration file.
  explicit WitnessStage(const std::string& config = "");

  /// The daemon lives, the witness is READY and the census is that of `before`.
  void check_unharmed(const Census& before);
};

}  // namespace kuasar::test
