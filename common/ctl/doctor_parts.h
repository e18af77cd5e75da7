#pragma once

// What the files of the doctor share; for them alone.

#include <string>
#include <utility>

#include "ctl/doctor.h"

namespace kuasar::ctl {

inline Finding ok(std::string check, std::string words) {
  return {Finding::Level::kOk, std::move(check), std::move(words), ""};
}
inline Finding warn(std::string check, std::string words, std::string remedy) {
  return {Finding::Level::kWarn, std::move(check), std::move(words), std::move(remedy)};
}
inline Finding bad(std::string check, std::string words, std::string remedy) {
  return {Finding::Level::kFail, std::move(check), std::move(words), std::move(remedy)};
}

}  // namespace kuasar::ctl
