#include "e2e/hostile_stage.h"

#include <catch2/catch_test_macros.hpp>

namespace kuasar::test {

WitnessStage::WitnessStage(const std::string& config) {
  if (!config.empty()) write_whole(daemon.config(), config);
  daemon.start();
  controller = std::make_unique<ControllerClient>(daemon.listen());
  REQUIRE(controller->create(pod_request("witness")).code == 0);
  REQUIRE(controller->start("witness").code == 0);
}

void WitnessStage::check_unharmed(const Census& before) {
  CHECK(daemon.alive());
  CHECK(controller->status("witness").response.state() == "SANDBOX_READY");
  const auto left = left_behind(before, daemon);
  INFO("left behind:" << listed(left));
  CHECK(left.empty());
}

}  // namespace kuasar::test
