#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "bench/cri_client.h"

namespace kuasar::bench {

using Clock = std::chrono::steady_clock;

/// How pods are made: with which handler, image (it must have sh) and cgroup parent, and where
/// their logs go.
struct PodPlan {
  std::string handler;
  std::string image;
  std::string cgroup_parent;
  std::filesystem::path logs;
  /// A network namespace with CNI's interfaces; else the host's network.
  bool cni = false;
};

/// A pod that runs, and its one container, which has written a line and sleeps.
struct BenchPod {
  std::string id;
  std::string container;
  cri::PodSandboxConfig config;
  std::filesystem::path log;
  /// When it was asked for.
  std::chrono::system_clock::time_point asked;
};

/// Makes and removes the pods of one side, as a kubelet does. Safe from several threads. Each call
/// is one call of CRI.
class Pods {
 public:
  Pods(CriClient& cri, PodPlan plan) : cri_(cri), plan_(std::move(plan)) {}

  const PodPlan& plan() const { return plan_; }
  Result<BenchPod> run_pod() const;
  Result<> create(BenchPod& pod) const;
  Result<> start(const BenchPod& pod) const;
  /// Waits for the container's line; returns the time from run_pod() to the moment containerd read
  /// it.
  Result<std::chrono::duration<double>> await_output(const BenchPod& pod) const;
  Result<> exec(const BenchPod& pod) const;
  /// SIGKILL: nothing waits for the workload's own way to end.
  Result<> stop_container(const BenchPod& pod) const;
  Result<> remove_container(const BenchPod& pod) const;
  Result<> stop(const BenchPod& pod) const;
  Result<> remove(const BenchPod& pod) const;

  /// A pod with a container that has written its line.
  Result<BenchPod> run_whole() const;
  Result<> remove_whole(const BenchPod& pod) const;

  CriClient& cri() const { return cri_; }

 private:
  CriClient& cri_;
  PodPlan plan_;
};

}  // namespace kuasar::bench
