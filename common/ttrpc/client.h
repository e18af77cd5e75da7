#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "ttrpc/call.h"

namespace kuasar::ttrpc {

/// One ttrpc connection as its client: any number of unary calls in flight. Lives on the io
/// thread; may be destroyed at any time, which closes the connection. When the connection is
/// lost every call ends with kUnavailable; there is no reconnecting, make a new client.
class Client {
 public:
  /// Connects to an AF_UNIX stream socket; waits for room in its backlog for up to `timeout`.
  /// Runs on the awaiting coroutine's executor.
  static Task<Result<std::unique_ptr<Client>>> connect(std::string path,
                                                       std::chrono::nanoseconds timeout);
  /// Talks over a connected socket, e.g. one end of a socketpair.
  static Result<std::unique_ptr<Client>> adopt(asio::any_io_executor executor, UniqueFd socket);

  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  /// One call. `timeout` 0 means none; the remaining time travels with the request. Errors: the
  /// server's status; kDeadlineExceeded; kUnavailable when the connection is or gets lost;
  /// kCancelled when the coroutine is cancelled; kInternal for an answer that does not parse.
  /// The request is serialized before this returns, so it may be a temporary.
  template <class Resp>
  Task<Result<Resp>> call(std::string service, std::string method,
                          const google::protobuf::MessageLite& request,
                          std::chrono::nanoseconds timeout, Metadata metadata = {}) {
    return receive<Resp>(call_raw(std::move(service), std::move(method), serialize_payload(request),
                                  timeout, std::move(metadata)));
  }

  /// The same with payloads as bytes; an error in `payload` is returned as it is.
  Task<Result<std::string>> call_raw(std::string service, std::string method,
                                     Result<std::string> payload, std::chrono::nanoseconds timeout,
                                     Metadata metadata = {});

  /// True once the connection is lost or close() was called.
  bool closed() const;
  /// Ends every call with kUnavailable.
  void close();

 private:
  class Core;
  explicit Client(std::shared_ptr<Core> core);

  template <class Resp>
  static Task<Result<Resp>> receive(Task<Result<std::string>> raw) {
    CO_TRY(std::string payload, co_await std::move(raw));
    Resp response;
    Result<> parsed = parse_payload(payload, response);
    if (!parsed) co_return fail(Code::kInternal, "{}", parsed.error().message);
    co_return std::move(response);
  }

  std::shared_ptr<Core> core_;
};

}  // namespace kuasar::ttrpc
