#include "async/blocking_pool.h"

namespace kuasar {

BlockingPool::BlockingPool(std::size_t threads) : threads_(threads) {}

BlockingPool::~BlockingPool() {
  threads_.join();
}

}  // namespace kuasar
