#pragma once

#include "base/error.h"
#include "ctl/args.h"

namespace kuasar::ctl {

/// Runs a command of kuasar-ctl, prints to the standard streams, returns the exit status.
Result<int> run_command(const Args& args);

/// `kuasar-ctl doctor`: the checks of doctor.h on this machine, and on the daemons that answer.
Result<int> run_doctor(const Args& args);

}  // namespace kuasar::ctl
