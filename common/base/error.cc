#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace kuasar {

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kOk: return "OK";
    case Code::kCancelled: return "CANCELLED";
    case Code::kUnknown: return "UNKNOWN";
    case Code::kInvalidArgument: return "INVALID_ARGUMENT";
    case Code::kDeadlineExceeded: return "DEADLINE_EXCEEDED";
    case Code::kNotFound: return "NOT_FOUND";
    case Code::kAlreadyExists: return "ALREADY_EXISTS";
    case Code::kPermissionDenied: return "PERMISSION_DENIED";
    case Code::kResourceExhausted: return "RESOURCE_EXHAUSTED";
    case Code::kFailedPrecondition: return "FAILED_PRECONDITION";
    case Code::kAborted: return "ABORTED";
    case Code::kOutOfRange: return "OUT_OF_RANGE";
    case Code::kUnimplemented: return "UNIMPLEMENTED";
    case Code::kInternal: return "INTERNAL";
    case Code::kUnavailable: return "UNAVAILABLE";
    case Code::kDataLoss: return "DATA_LOSS";
    case Code::kUnauthenticated: return "UNAUTHENTICATED";
  }
  return "UNKNOWN";
}

Code code_from_errno(int err) {
  switch (err) {
    case ENOENT:
    case ESRCH: return Code::kNotFound;
    case EEXIST: return Code::kAlreadyExists;
    case EACCES:
    case EPERM: return Code::kPermissionDenied;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case EAGAIN: return Code::kResourceExhausted;
    case EINVAL:
    case ENAMETOOLONG:
    case ELOOP: return Code::kInvalidArgument;
    case ETIMEDOUT: return Code::kDeadlineExceeded;
    case ENOSYS:
    case EOPNOTSUPP: return Code::kUnimplemented;
    default: return Code::kInternal;
  }
}

Error Error::from_errno_value(int err, std::string_view op, std::string_view what) {
  char buffer[128];
  const char* text = ::strerror_r(err, buffer, sizeof buffer);
  std::string message =
      what.empty() ? fmt::format("{}: {}", op, text) : fmt::format("{} {}: {}", op, what, text);
  return Error{code_from_errno(err), err, std::move(message)};
}

Error Error::from_errno(std::string_view op, std::string_view what) {
  return from_errno_value(errno, op, what);
}

tl::unexpected<Error> fail_errno(std::string_view op, std::string_view what) {
  return fail(Error::from_errno(op, what));
}

}  // namespace kuasar
