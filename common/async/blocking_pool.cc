#include "async/blocking_pool.h"

namespace kuasar {

BlockingPool::BlockingPool(std::size_t threads) : threads_(threads) {}

BlockingPool::~BlockingPool() {
  threads_.join();
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
