#include "support/fake_driver.h"

#include <google/protobuf/any.pb.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <utility>

#include "containerd/cgroups/v2/metrics.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "task/any.h"

namespace kuasar::test {

namespace {

std::string name_of(const task::ProcessRef& ref) {
  return ref.exec.empty() ? ref.container : ref.container + "/" + ref.exec;
}

}  // namespace

void FakeDriver::end(const std::string& name, int code) {
  const std::shared_ptr<Fake> process = processes_.at(name);
  if (process->ended.is_set()) return;
  process->code = code;
  process->ended.set();
}

Result<std::string> FakeDriver::runtime_for(const std::string& binary) {
  return binary;
}

Task<Result<>> FakeDriver::create(task::ContainerPlan plan, const task::Stdio&) {
  calls.push_back("create " + plan.id + (plan.runtime.empty() ? "" : " by " + plan.runtime));
  if (create_error) co_return fail(*create_error);
  processes_[plan.id] = std::make_shared<Fake>();
  co_return Result<>();
}

Task<Result<>> FakeDriver::start(std::string container) {
  calls.push_back("start " + container);
  if (hold_start != nullptr) co_await hold_start->wait();
  if (start_error) co_return fail(*start_error);
  co_return Result<>();
}

Task<os::ExitStatus> FakeDriver::wait_exit(task::ProcessRef ref) {
  const std::shared_ptr<Fake> init = processes_.at(name_of(ref));
  os::ExitStatus status;
  status.known = co_await init->ended.wait();
  status.code = init->code;
  status.at = std::chrono::system_clock::now();
  co_return status;
}

void FakeDriver::on_exit(const asio::any_io_executor& executor, const task::ProcessRef& ref,
                         std::function<void()> then) {
  const std::shared_ptr<Fake> process = processes_.at(name_of(ref));
  process->on_exit = Event::when_any(executor, {&process->ended}, std::move(then));
}

Result<> FakeDriver::signal(const task::ProcessRef& ref, int signal) {
  calls.push_back("signal " + name_of(ref) + " " + std::to_string(signal));
  if (processes_.at(name_of(ref))->ended.is_set()) return fail(Code::kNotFound, "no process");
  if (signal == 9 && killable) end(name_of(ref), 137);
  return {};
}

void FakeDriver::reap(const task::ProcessRef& ref) {
  calls.push_back("reap " + name_of(ref));
}

Task<Result<>> FakeDriver::signal_others(std::string container, int signal) {
  calls.push_back("signal_others " + container + " " + std::to_string(signal));
  co_return Result<>();
}

Task<Result<>> FakeDriver::kill_all(std::string container) {
  calls.push_back("kill_all " + container);
  if (!killable) co_return Result<>();
  for (const auto& [name, process] : processes_) {
    if (name == container || name.starts_with(container + "/")) end(name, 137);
  }
  co_return Result<>();
}

Task<Result<>> FakeDriver::freeze(std::string container) {
  calls.push_back("freeze " + container);
  if (hold_freeze != nullptr) co_await hold_freeze->wait();
  if (resource_error) co_return fail(*resource_error);
  is_frozen.insert(container);
  co_return Result<>();
}

Task<Result<>> FakeDriver::thaw(std::string container) {
  calls.push_back("thaw " + container);
  if (resource_error) co_return fail(*resource_error);
  is_frozen.erase(container);
  co_return Result<>();
}

Task<Result<>> FakeDriver::update(std::string container, os::CgroupLimits limits) {
  calls.push_back("update " + container);
  if (resource_error) co_return fail(*resource_error);
  updates.push_back(std::move(limits));
  co_return Result<>();
}

Task<Result<google::protobuf::Any>> FakeDriver::stats(std::string container) {
  calls.push_back("stats " + container);
  if (resource_error) co_return fail(*resource_error);
  ::io::containerd::cgroups::v2::Metrics metrics;
  metrics.mutable_memory()->set_usage(4096);
  co_return task::pack_any(metrics);
}

void FakeDriver::oom(const std::string& container) {
  ++ooms[container];
  if (const auto& told = processes_.at(container)->on_oom) told();
}

void FakeDriver::on_oom(const asio::any_io_executor& executor, const std::string& container,
                        std::function<void()> then) {
  processes_.at(container)->on_oom = [executor, then = std::move(then)] {
    asio::post(executor, then);
  };
}

void FakeDriver::stop_watching() {
  for (const auto& [name, process] : processes_) {
    process->on_exit = {};
    process->on_oom = nullptr;
  }
}

Task<Result<>> FakeDriver::checkpoint(task::CheckpointPlan plan) {
  calls.push_back("checkpoint " + plan.container);
  if (resource_error) co_return fail(*resource_error);
  checkpoints.push_back(std::move(plan));
  co_return Result<>();
}

std::vector<pid_t> FakeDriver::pids(const std::string&) {
  return {};
}

pid_t FakeDriver::host_pid(const task::ProcessRef& ref) {
  if (ref.exec.empty()) return 4242;
  return processes_.contains(name_of(ref)) ? 4343 : 0;
}

Task<Result<>> FakeDriver::remove(std::string container) {
  calls.push_back("remove " + container);
  if (remove_error) co_return fail(*remove_error);
  std::erase_if(processes_, [&](const auto& item) {
    return item.first == container || item.first.starts_with(container + "/");
  });
  co_return Result<>();
}

Task<Result<>> FakeDriver::exec(task::ExecPlan plan, const task::Stdio& stdio) {
  const std::string name = name_of(plan.ref);
  calls.push_back("exec " + name);
  if (hold_exec != nullptr) co_await hold_exec->wait();
  if (exec_error) co_return fail(*exec_error);
  if (!exec_says.empty() && stdio.stdout_fd() >= 0 &&
      ::write(stdio.stdout_fd(), exec_says.data(), exec_says.size()) < 0) {
    co_return fail_errno("write", name);
  }
  processes_[name] = std::make_shared<Fake>();
  co_return Result<>();
}

void FakeDriver::forget_exec(const task::ProcessRef& ref) {
  calls.push_back("forget " + name_of(ref));
  processes_.erase(name_of(ref));
}

Task<Result<>> FakeDriver::resize(task::ProcessRef ref, std::shared_ptr<const task::Stdio>,
                                  std::uint16_t width, std::uint16_t height) {
  calls.push_back("resize " + name_of(ref) + " " + std::to_string(width) + "x" +
                  std::to_string(height));
  co_return Result<>();
}

Task<Result<bool>> FakeDriver::recover_exec(task::ProcessRef ref,
                                            state::v1::ProcessIdentity identity) {
  calls.push_back("recover " + name_of(ref));
  processes_[name_of(ref)] = std::make_shared<Fake>();
  co_return identity.pid() > 0;
}

Task<Result<>> FakeDriver::resume_exec(task::ExecPlan plan) {
  calls.push_back("resume " + name_of(plan.ref));
  if (resumed) processes_[name_of(plan.ref)] = std::make_shared<Fake>();
  co_return resumed;
}

void FakeDriver::save(const std::string&, state::v1::ContainerState&) {}

Task<Result<bool>> FakeDriver::recover(std::string,
                                       std::shared_ptr<const state::v1::ContainerState> record) {
  calls.push_back("recover " + record->id());
  processes_[record->id()] = std::make_shared<Fake>();
  co_return record->init().pid() > 0;
}

Task<Result<task::Attachment>> FakePods::attach(std::string sandbox_id, std::string container_id,
                                                oci::Spec spec, TimelinePtr) {
  calls.push_back("attach " + sandbox_id + " " + container_id);
  if (sandbox_id == missing) co_return fail(Code::kNotFound, "sandbox {} not found", sandbox_id);
  co_return task::Attachment{dir, std::move(spec), shared_pid};
}

Task<Result<>> FakePods::detach(std::string sandbox_id, std::string container_id) {
  calls.push_back("detach " + sandbox_id + " " + container_id);
  co_return Result<>();
}

Result<> FakePods::save(const state::v1::ContainerState& record) {
  if (save_error) return fail(*save_error);
  saved.push_back(record.id() + ":" + std::to_string(record.phase()));
  runtimes.push_back(record.runtime());
  return {};
}

Result<> FakePods::save(const std::string& sandbox_id, const state::v1::Tombstones& stones) {
  calls.push_back("tombstones " + sandbox_id + " " + std::to_string(stones.stones_size()));
  return {};
}

}  // namespace kuasar::test
