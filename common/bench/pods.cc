#include "bench/pods.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>

#include "base/files.h"
#include "base/wait.h"

namespace kuasar::bench {
namespace {

constexpr std::chrono::seconds kOutputPatience{30};

// Everything of the pod that is a namespace of its own or the host's, and none that it shares: the
// kubelet's default.
template <typename Linux>
void choose_namespaces(Linux& config, bool cni) {
  auto* options = config.mutable_security_context()->mutable_namespace_options();
  options->set_pid(cri::CONTAINER);
  options->set_network(cni ? cri::POD : cri::NODE);
}

}  // namespace

Result<BenchPod> Pods::run_pod() const {
  static std::atomic<unsigned> number{0};
  BenchPod pod;
  const std::string name = fmt::format("bench-{}-{}", ::getpid(), number++);
  pod.config.mutable_metadata()->set_name(name);
  pod.config.mutable_metadata()->set_uid(name);
  pod.config.mutable_metadata()->set_namespace_("kuasar-bench");
  // In the host's network the name is the host's: the kubelet sets none.
  if (plan_.cni) pod.config.set_hostname(name);
  pod.config.set_log_directory(plan_.logs / name);
  pod.config.mutable_linux()->set_cgroup_parent(plan_.cgroup_parent);
  choose_namespaces(*pod.config.mutable_linux(), plan_.cni);
  pod.asked = std::chrono::system_clock::now();
  TRY(pod.id, cri_.run_pod(pod.config, plan_.handler));
  return pod;
}

Result<> Pods::create(BenchPod& pod) const {
  cri::ContainerConfig config;
  config.mutable_metadata()->set_name("workload");
  config.mutable_image()->set_image(plan_.image);
  for (const char* word : {"sh", "-c", "echo up; exec sleep 86400"}) config.add_command(word);
  config.set_log_path("workload.log");
  choose_namespaces(*config.mutable_linux(), plan_.cni);
  pod.log = std::filesystem::path(pod.config.log_directory()) / config.log_path();
  TRY(pod.container, cri_.create_container(pod.id, config, pod.config));
  return {};
}

Result<> Pods::start(const BenchPod& pod) const {
  return cri_.start_container(pod.container);
}

Result<std::chrono::duration<double>> Pods::await_output(const BenchPod& pod) const {
  std::string text;
  const auto written = [&] {
    text = read_file(pod.log).value_or("");
    return text.find('\n') != std::string::npos;
  };
  if (!wait_until(written, kOutputPatience)) {
    return fail(Code::kDeadlineExceeded, "container {} has written nothing to {}", pod.container,
                pod.log.native());
  }
  TRY(const auto when, first_log_time(text));
  return when - pod.asked;
}

Result<> Pods::exec(const BenchPod& pod) const {
  TRY(const auto answer, cri_.exec_sync(pod.container, {"true"}, 30));
  if (answer.exit_code() != 0) {
    return fail(Code::kInternal, "exec of true in {} ended with {}", pod.container,
                answer.exit_code());
  }
  return {};
}

Result<> Pods::stop_container(const BenchPod& pod) const {
  return cri_.stop_container(pod.container, 0);
}
Result<> Pods::remove_container(const BenchPod& pod) const {
  return cri_.remove_container(pod.container);
}
Result<> Pods::stop(const BenchPod& pod) const {
  return cri_.stop_pod(pod.id);
}

Result<> Pods::remove(const BenchPod& pod) const {
  CHECK_OK(cri_.remove_pod(pod.id));
  std::error_code ec;
  std::filesystem::remove_all(pod.config.log_directory(), ec);
  return {};
}

Result<BenchPod> Pods::run_whole() const {
  TRY(BenchPod pod, run_pod());
  auto begun = create(pod);
  if (begun) begun = start(pod);
  if (begun) {
    auto wrote = await_output(pod);
    if (!wrote) begun = fail(std::move(wrote).error());
  }
  if (begun) return pod;
  // Left behind it would count in everything that follows.
  (void)stop(pod);
  (void)remove(pod);
  return fail(std::move(begun).error());
}

Result<> Pods::remove_whole(const BenchPod& pod) const {
  CHECK_OK(stop_container(pod));
  CHECK_OK(stop(pod));
  return remove(pod);
}

}  // namespace kuasar::bench
