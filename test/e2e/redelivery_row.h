#pragma once

#include <google/protobuf/message.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "e2e/redelivery_bench.h"

// The daemon dies in a Task call: before its effect, with its effect done, with its answer sent.
// Meanwhile the caller's connection stays open, is closed, or the call's deadline passes. What the
// caller and everybody else then sees is compared with a call that nothing disturbed.

namespace kuasar::test {

/// Whether the call's effect is there after the daemon's death, without a second run.
enum class Effect { kNo, kYes, kEither };

/// A call, and how far its container (and exec) have come when it is made.
struct Row {
  const char* name;
  const char* method;
  std::function<std::string(const Subject&)> payload;
  std::shared_ptr<google::protobuf::Message> answer;
  /// Of an answer that measures: what it must have in common with that of another moment.
  std::function<std::string(const google::protobuf::Message&)> in_common = {};
  Stage container = Stage::kRunning;
  /// Of calls about an exec.
  std::optional<Stage> exec = std::nullopt;
  /// The line that the call makes appear in the container's log.
  const char* says = nullptr;
  /// The call changes its container for good: every cell has its own.
  bool fresh = false;
  bool reads_stdin = false;
  bool terminal = false;
  /// The container ends while the call waits, whether the daemon lives or not.
  bool ends_meanwhile = false;
  /// Not every kernel can do it: where the undisturbed call is refused, all are, in its words.
  bool may_be_refused = false;
  /// What the OCI runtime is executed for (a start: would be), other failpoints on the way, and
  /// what becomes of the effect when the daemon dies at one of them.
  const char* verb = nullptr;
  std::vector<std::string> points = {};
  Effect half_done = Effect::kNo;
};

/// All cells of a row, each with its own death of the daemon; fails the case where one is not as it
/// should be. The words of the undisturbed call where that is refused, else empty.
std::string run_row(Bench& bench, const Row& row);

template <typename Request>
std::string plainly(const Subject& subject) {
  return request_for<Request>(subject).SerializeAsString();
}

template <typename Answer>
std::shared_ptr<google::protobuf::Message> answer() {
  return std::make_shared<Answer>();
}

}  // namespace kuasar::test
