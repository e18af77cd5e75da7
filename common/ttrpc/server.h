#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "async/task.h"
#include "base/call_end.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "ttrpc/call.h"
#include "ttrpc/journal.h"

namespace kuasar::ttrpc {

/// Requests of one connection that may run unanswered; one more is answered RESOURCE_EXHAUSTED.
/// Reading never stops: the client would block in write with its lock held.
inline constexpr std::size_t kMaxUnanswered = 1024;
/// Requests of one connection that may wait for an event (add_wait()): one for each process of a
/// container.
inline constexpr std::size_t kMaxWaiting = 4096;
/// Handlers of one connection that may run, those whose deadline has passed included.
inline constexpr std::size_t kMaxRunning = 2048;

/// The number that the kernel gives to a socket and to no other one until the next boot; all
/// descriptors of a socket have it (SO_COOKIE, Linux 4.12).
Result<std::uint64_t> connection_id(int socket);
/// True when the peer has closed its end: whatever it asked for, nobody waits for the answer.
bool hung_up(int socket);

/// Serves unary ttrpc calls on AF_UNIX stream connections. Owned by whoever composes the daemon;
/// lives on the io thread, as all handlers do. Handlers of one connection run concurrently and
/// their answers leave in the order in which they finish. A connection whose peer misbehaves or
/// does not read is closed alone. Only peers of our own effective uid, or root, are accepted.
///
/// A handler is never cancelled by its caller's deadline or disconnect: the answer is dropped.
/// stop() must have ended before the server is destroyed, unless it never served a connection.
class Server {
 public:
  /// Takes a request payload, returns a response payload.
  using RawHandler = std::function<Task<Result<std::string>>(std::string, CallContext)>;
  using RawWaitHandler = std::function<Result<Awaited<std::string>>(std::string, CallContext)>;
  template <class Req, class Resp>
  using Handler = std::function<Task<Result<Resp>>(Req, CallContext)>;
  template <class Req, class Resp>
  using WaitHandler = std::function<Result<Awaited<Resp>>(Req, CallContext)>;

  explicit Server(asio::any_io_executor executor);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Registers a method; `service` is the full proto name, `method` the bare one. The handler
  /// object is kept alive while a call of it runs. Call before serve() or adopt().
  template <class Req, class Resp>
  void add(std::string service, std::string method, Handler<Req, Resp> handler) {
    auto shared = std::make_shared<const Handler<Req, Resp>>(std::move(handler));
    add_raw(std::move(service), std::move(method),
            [shared](std::string payload, CallContext context) {
              return run_typed<Req, Resp>(shared, std::move(payload), std::move(context));
            });
  }
  /// A method that waits for an event. stop() does not wait for it: that would use up the grace for
  /// nothing. A connection that ends ends its calls, which are not asked for their answer then.
  template <class Req, class Resp>
  void add_wait(std::string service, std::string method, WaitHandler<Req, Resp> handler) {
    add_raw_wait(std::move(service), std::move(method),
                 [handler = std::move(handler)](
                     std::string payload, CallContext context) -> Result<Awaited<std::string>> {
                   Req request;
                   CHECK_OK(parse_payload(payload, request));
                   TRY(Awaited<Resp> awaited, handler(std::move(request), std::move(context)));
                   return in_bytes(std::move(awaited));
                 });
  }
  /// A method that is known and refused: UNIMPLEMENTED with these words.
  void add_unimplemented(std::string service, std::string method, std::string words);
  void add_raw(std::string service, std::string method, RawHandler handler);
  void add_raw_wait(std::string service, std::string method, RawWaitHandler handler);

  /// Is told of every call whose handler ends from now on.
  void observe(CallObserver observer);

  /// Accepts connections until stop(); the listener is closed then. An accept that fails (EMFILE)
  /// is logged once and tried again after a pause.
  Task<> serve(UniqueFd listener);
  /// Serves a connection that somebody else accepted. With a journal its unanswered requests are
  /// run first. A peer that may not talk to us, or a descriptor that is no socket, is closed and
  /// gives nullptr. `process` is for the handlers.
  std::shared_ptr<Peer> adopt(UniqueFd connection, std::unique_ptr<Journal> journal = nullptr,
                              PeerProcess process = {});

  /// Waits until every call that runs now has ended, or `timeout`; reads and serves on meanwhile.
  /// Calls that wait for an event do not count.
  Task<> finish_running(std::chrono::nanoseconds timeout);
  /// The first half of stop(): no more is accepted and read, what runs may finish for up to
  /// `grace`, then our end of every connection is closed. False when a call still runs: then only
  /// stop(), or the end of the process, may follow.
  Task<bool> halt(std::chrono::nanoseconds grace);
  /// Stops accepting and reading (a request that was not read was not run), lets running calls
  /// finish and their answers leave for up to `grace`, closes our end of every connection (a
  /// journal keeps what is unanswered for the process that adopts it next), cancels the
  /// handlers that are left and ends when none is. A second call waits likewise.
  Task<> stop(std::chrono::nanoseconds grace);

  /// Open connections.
  std::size_t connections() const;

 private:
  class Core;

  template <class Req, class Resp>
  static Task<Result<std::string>> run_typed(std::shared_ptr<const Handler<Req, Resp>> handler,
                                             std::string payload, CallContext context) {
    Req request;
    CO_CHECK(parse_payload(payload, request));
    payload = {};
    CO_TRY(Resp response, co_await (*handler)(std::move(request), std::move(context)));
    co_return serialize_payload(response);
  }

  template <class Resp>
  static Awaited<std::string> in_bytes(Awaited<Resp> awaited) {
    return {std::move(awaited.events),
            [answer = std::move(awaited.answer)]() -> Result<std::string> {
              TRY(const Resp response, answer());
              return serialize_payload(response);
            }};
  }

  std::shared_ptr<Core> core_;
};

}  // namespace kuasar::ttrpc
