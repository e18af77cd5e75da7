#pragma once

#include <functional>
#include <utility>
#include <vector>

namespace kuasar {

/// Undo steps of an operation of several steps, run in reverse order when it is left without
/// commit(). A step must not throw; what it cannot undo it logs.
class Rollback {
 public:
  Rollback() = default;
  Rollback(const Rollback&) = delete;
  Rollback& operator=(const Rollback&) = delete;
  ~Rollback() { run(); }

  void add(std::function<void()> undo) { steps_.push_back(std::move(undo)); }
  void commit() { steps_.clear(); }
  void run() {
    while (!steps_.empty()) {
      auto step = std::move(steps_.back());
      steps_.pop_back();
      step();
    }
  }

 private:
  std::vector<std::function<void()>> steps_;
};

}  // namespace kuasar
