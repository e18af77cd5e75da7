#pragma once

#include "base/wait.h"

namespace kuasar::test {

using kuasar::wait_until;

}  // namespace kuasar::test
