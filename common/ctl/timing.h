#pragma once

#include <boost/json/value.hpp>
#include <string>

// `kuasar-ctl inspect POD --timing`: what the start of a pod and of its containers took. Pure.

namespace kuasar::ctl::v1 {
class Pod;
}

namespace kuasar::ctl {

/// A table per timeline: when, how long, what, and where that lies in the whole.
std::string timing_text(const v1::Pod& pod);
boost::json::value timing_json(const v1::Pod& pod);

}  // namespace kuasar::ctl
