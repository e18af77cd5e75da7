#include "support/fake_driver.h"

#include "kuasar/state/v1/state.pb.h"

namespace kuasar::test {

void FakeDriver::end_init(const std::string& container, int code) {
  const std::shared_ptr<Init> init = inits_.at(container);
  if (init->ended.is_set()) return;
  init->code = code;
  init->ended.set();
}

Task<Result<>> FakeDriver::create(task::ContainerPlan plan, const task::Stdio&) {
  calls.push_back("create " + plan.id);
  if (create_error) co_return fail(*create_error);
  inits_[plan.id] = std::make_shared<Init>();
  co_return Result<>();
}

Task<Result<>> FakeDriver::start(std::string container) {
  calls.push_back("start " + container);
  if (hold_start != nullptr) co_await hold_start->wait();
  if (start_error) co_return fail(*start_error);
  co_return Result<>();
}

Task<os::ExitStatus> FakeDriver::wait_exit(task::ProcessRef ref) {
  const std::shared_ptr<Init> init = inits_.at(ref.container);
  os::ExitStatus status;
  status.known = co_await init->ended.wait();
  status.code = init->code;
  status.at = std::chrono::system_clock::now();
  co_return status;
}

Result<> FakeDriver::signal(const task::ProcessRef& ref, int signal) {
  calls.push_back("signal " + ref.container + " " + std::to_string(signal));
  if (inits_.at(ref.container)->ended.is_set()) return fail(Code::kNotFound, "no process");
  if (signal == 9 && killable) end_init(ref.container, 137);
  return {};
}

Task<Result<>> FakeDriver::kill_all(std::string container) {
  calls.push_back("kill_all " + container);
  if (killable) end_init(container, 137);
  co_return Result<>();
}

std::vector<pid_t> FakeDriver::pids(const std::string&) {
  return {};
}

pid_t FakeDriver::host_pid(const task::ProcessRef&) {
  return 4242;
}

Task<Result<>> FakeDriver::remove(std::string container) {
  calls.push_back("remove " + container);
  if (remove_error) co_return fail(*remove_error);
  inits_.erase(container);
  co_return Result<>();
}

void FakeDriver::save(const std::string&, state::v1::ContainerState&) {}

Task<Result<bool>> FakeDriver::recover(std::string,
                                       std::shared_ptr<const state::v1::ContainerState> record) {
  calls.push_back("recover " + record->id());
  inits_[record->id()] = std::make_shared<Init>();
  co_return record->init().pid() > 0;
}

Task<Result<task::Attachment>> FakePods::attach(std::string sandbox_id, std::string container_id,
                                                oci::Spec spec) {
  calls.push_back("attach " + sandbox_id + " " + container_id);
  if (sandbox_id == missing) co_return fail(Code::kNotFound, "sandbox {} not found", sandbox_id);
  co_return task::Attachment{"/nowhere", std::move(spec), shared_pid};
}

Task<Result<>> FakePods::detach(std::string sandbox_id, std::string container_id) {
  calls.push_back("detach " + sandbox_id + " " + container_id);
  co_return Result<>();
}

Result<> FakePods::save(const state::v1::ContainerState& record) {
  if (save_error) return fail(*save_error);
  saved.push_back(record.id() + ":" + std::to_string(record.phase()));
  return {};
}

}  // namespace kuasar::test
