#include "base/version.h"

namespace kuasar {

std::string_view version() {
  return KUASAR_VERSION;
}

}  // namespace kuasar
