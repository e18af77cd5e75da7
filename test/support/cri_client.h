#pragma once

#include "bench/cri_client.h"

// The client of kuasar-bench is the tests' client.

namespace kuasar::test {

namespace cri = bench::cri;
using bench::CriClient;
using bench::CriLog;
using bench::first_log_time;
using bench::parse_cri_log;

}  // namespace kuasar::test
