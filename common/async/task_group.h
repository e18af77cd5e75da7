#pragma once

#include <cstddef>
#include <list>
#include <memory>

#include "async/event.h"
#include "async/task.h"

namespace kuasar {

/// Owns concurrent coroutines of the io thread: none outlives the group's join(). An exception
/// that leaves a child is a defect: it is logged and the process aborts (recovery is cheap).
/// The group must be joined before it is destroyed, unless it never had a child.
class TaskGroup {
 public:
  explicit TaskGroup(asio::any_io_executor executor);
  ~TaskGroup();
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  /// Starts a child, which runs at once up to its first wait. May be called by a child.
  void spawn(Task<> child);
  /// Asks every running child to end: its current wait returns early.
  void cancel();
  /// Ends when no child is left; children may still be added meanwhile.
  Task<> join();
  std::size_t size() const;

 private:
  struct State;
  asio::any_io_executor executor_;
  std::shared_ptr<State> state_;
};

/// Starts a coroutine that nobody joins, for the few roots of the program (main, tests).
void spawn_root(asio::any_io_executor executor, Task<> task);

}  // namespace kuasar
