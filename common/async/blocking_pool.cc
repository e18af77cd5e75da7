#include "async/blocking_pool.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

namespace kuasar {

/// What the threads share; each keeps it alive.
struct BlockingPool::Threads {
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable ended;
  std::deque<std::unique_ptr<Job>> jobs;
  std::size_t running = 0;
  std::size_t idle = 0;
  bool stopping = false;

  void add(const std::shared_ptr<Threads>& self, bool stays) {
    std::thread([self, stays] { self->serve(stays); }).detach();
    ++running;
  }

  void serve(bool stays) {
    std::unique_lock lock(mutex);
    for (;;) {
      ++idle;
      const auto is_due = [&] { return stopping || !jobs.empty(); };
      bool due = true;
      if (stays) {
        work.wait(lock, is_due);
      } else {
        due = work.wait_for(lock, kIdleTime, is_due);
      }
      --idle;
      if (!due || jobs.empty()) break;
      std::unique_ptr<Job> job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      job->run();
      job.reset();
      lock.lock();
    }
    --running;
    ended.notify_all();
  }
};

BlockingPool::BlockingPool(std::size_t threads) : threads_(std::make_shared<Threads>()) {
  const std::lock_guard lock(threads_->mutex);
  for (std::size_t i = 0; i < threads; ++i) threads_->add(threads_, true);
}

BlockingPool::~BlockingPool() {
  std::unique_lock lock(threads_->mutex);
  threads_->stopping = true;
  threads_->work.notify_all();
  threads_->ended.wait(lock, [&] { return threads_->running == 0; });
}

void BlockingPool::push(std::unique_ptr<Job> job) {
  const std::lock_guard lock(threads_->mutex);
  threads_->jobs.push_back(std::move(job));
  threads_->work.notify_one();
}

void BlockingPool::add_thread_if_late() {
  const std::lock_guard lock(threads_->mutex);
  const auto limit = std::chrono::steady_clock::now() - kPatience;
  const bool late = !threads_->jobs.empty() && threads_->jobs.front()->since <= limit;
  if (!late || threads_->running >= kMostThreads) return;
  try {
    threads_->add(threads_, false);
  } catch (const std::system_error&) {
    // The work waits for one of the threads that are there.
  }
}

std::string BlockingPool::Work::name() const {
  std::string_view short_name = file;
  const std::size_t layer = short_name.rfind('/', short_name.rfind('/') - 1);
  if (layer != std::string_view::npos) short_name.remove_prefix(layer + 1);
  return std::string(short_name) + ":" + std::to_string(line);
}

std::vector<BlockingPool::Work> BlockingPool::older_than(std::chrono::nanoseconds age) const {
  const auto limit = std::chrono::steady_clock::now() - age;
  std::vector<Work> old;
  for (const Work& work : begun_) {
    if (work.since <= limit) old.push_back(work);
  }
  return old;
}

}  // namespace kuasar
