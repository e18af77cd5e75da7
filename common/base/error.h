#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace kuasar {

/// Canonical gRPC status codes (google.rpc.Code); ttrpc uses the same numbers.
enum class Code {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

/// The canonical upper-case name, e.g. "NOT_FOUND".
std::string_view code_name(Code code);

/// A failure as a value: a code for the caller's program, an errno where the kernel said no, and
/// a message for a person that names the cause and, where there is one, the remedy.
/// Made at the place that failed; each layer above adds one piece of context.
struct Error {
  Code code = Code::kUnknown;
  int err = 0;
  std::string message;

  /// From the current value of errno: "<op> <what>: <strerror>".
  static Error from_errno(std::string_view op, std::string_view what = {});
  /// From a given errno value.
  static Error from_errno_value(int err, std::string_view op, std::string_view what = {});

  template <typename... Args>
  static Error make(Code code, fmt::format_string<Args...> format, Args&&... args) {
    return Error{code, 0, fmt::format(format, std::forward<Args>(args)...)};
  }

  /// Prepends "<text>: " to the message.
  template <typename... Args>
  Error context(fmt::format_string<Args...> format, Args&&... args) && {
    message = fmt::format(format, std::forward<Args>(args)...) + ": " + message;
    return std::move(*this);
  }
};

/// The code that an errno value means to a caller (ENOENT: kNotFound, ENOSPC: kResourceExhausted).
Code code_from_errno(int err);

template <typename T = void>
using Result = tl::expected<T, Error>;

/// Makes the error alternative of any Result.
inline tl::unexpected<Error> fail(Error error) {
  return tl::unexpected<Error>(std::move(error));
}
template <typename... Args>
tl::unexpected<Error> fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error::make(code, format, std::forward<Args>(args)...));
}
/// fail(Error::from_errno(op, what)).
tl::unexpected<Error> fail_errno(std::string_view op, std::string_view what = {});

}  // namespace kuasar

#define KUASAR_CONCAT_INNER(a, b) a##b
#define KUASAR_CONCAT(a, b) KUASAR_CONCAT_INNER(a, b)
// __COUNTER__, not __LINE__: an argument may be a lambda that uses these macros itself.
#define KUASAR_UNIQUE KUASAR_CONCAT(kuasar_result_, __COUNTER__)

#define KUASAR_TRY_IMPL(result, decl, expr, ret)              \
  auto result = (expr);                                       \
  if (!result) ret ::kuasar::fail(std::move(result).error()); \
  decl = std::move(*result)
#define KUASAR_CHECK_IMPL(result, expr, ret)                    \
  do {                                                          \
    auto result = (expr);                                       \
    if (!result) ret ::kuasar::fail(std::move(result).error()); \
  } while (false)

/// TRY(auto x, expr); binds the value of a Result or returns its error.
#define TRY(decl, expr) KUASAR_TRY_IMPL(KUASAR_UNIQUE, decl, expr, return )
/// CHECK_OK(expr); returns the error of a Result<void> (or of any Result).
#define CHECK_OK(expr) KUASAR_CHECK_IMPL(KUASAR_UNIQUE, expr, return )
/// The same inside a coroutine: CO_TRY(auto x, co_await f());
#define CO_TRY(decl, expr) KUASAR_TRY_IMPL(KUASAR_UNIQUE, decl, expr, co_return )
#define CO_CHECK(expr) KUASAR_CHECK_IMPL(KUASAR_UNIQUE, expr, co_return )
