#include "ttrpc/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <cerrno>
#include <memory>
#include <utility>

namespace kuasar::ttrpc {
namespace {

using Protocol = asio::generic::stream_protocol;

// A peer whose send buffer is full before its frame is whole (it writes in very small pieces, or
// its buffer is tiny) would wait for us while we wait for it.
constexpr std::chrono::milliseconds kStallTime{200};
// What a queued frame costs besides its bytes.
constexpr std::size_t kFrameOverhead = 64;
// One turn of one connection; other connections get theirs in between.
constexpr std::size_t kReadPiece = 64U << 10;

// Shared by all connections of the thread: its content never outlives a function. On the heap,
// since glibc clears an array in thread-local storage at the start of every thread, and touches its
// pages.
char* scratch() {
  thread_local const auto bytes = std::make_unique_for_overwrite<char[]>(kReadPiece);
  return bytes.get();
}

int socket_option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

// With a peek offset each MSG_PEEK returns what came since the last one (socket(7)), so a frame
// that is not whole yet can be waited for without spinning on the bytes already seen.
bool rewind_peek(int fd) {
  const int offset = 0;
  return ::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0;
}

Error lost(std::string_view why) {
  return Error::make(Code::kUnavailable, "{}", why);
}

}  // namespace

Connection::Connection(Socket socket, std::unique_ptr<Journal> journal)
    : socket_(std::move(socket)), journal_(std::move(journal)) {
  if (journal_) journalled_ = journal_->last_stream();
}

Result<std::shared_ptr<Connection>> Connection::adopt(const asio::any_io_executor& executor,
                                                      UniqueFd socket,
                                                      std::unique_ptr<Journal> journal) {
  if (socket_option(socket.get(), SO_DOMAIN) != AF_UNIX ||
      socket_option(socket.get(), SO_TYPE) != SOCK_STREAM) {
    return fail(Code::kInvalidArgument, "a ttrpc connection must be an AF_UNIX stream socket");
  }
  if (journal && !rewind_peek(socket.get())) return fail_errno("setsockopt", "SO_PEEK_OFF");
  Socket wrapped(io_executor(executor));
  boost::system::error_code ec;
  wrapped.assign(Protocol(AF_UNIX, 0), socket.get(), ec);
  if (ec) return fail(asio_error(ec, "watch", "a ttrpc connection"));
  socket.release();
  wrapped.native_non_blocking(true, ec);
  if (ec) return fail(asio_error(ec, "make non-blocking", "a ttrpc connection"));
  return std::shared_ptr<Connection>(new Connection(std::move(wrapped), std::move(journal)));
}

void Connection::set_user(std::weak_ptr<ConnectionUser> user) {
  user_ = std::move(user);
}

void Connection::start(std::weak_ptr<ConnectionUser> user) {
  set_user(std::move(user));
  read_more();
}

void Connection::stop_reading() {
  if (closed_ || paused_) return;
  paused_ = true;
  boost::system::error_code ec;
  socket_.cancel(ec);
}

void Connection::let_go() {
  if (!closed_) end(lost("the server stops"));
}

void Connection::close(Error why) {
  if (closed_) return;
  if (journal_) journal_->discard();
  end(std::move(why));
}

void Connection::end(Error why) {
  closed_ = true;
  boost::system::error_code ec;
  socket_.close(ec);
  stall_.reset();
  output_.clear();
  queued_ = 0;
  if (const auto user = user_.lock()) user->on_closed(why);
}

void Connection::read_more() {
  if (closed_ || paused_) return;
  peeks_ = peeking();
  std::size_t room = probe_.size();
  // A plain read beside a journal must not take bytes of the next frame along.
  if (plain_) room = static_cast<std::size_t>(std::min<std::uint64_t>(room, reader_.missing()));
  if (peeks_ && peeked_ > 0) watch_for_stall();
  socket_.async_receive(asio::buffer(probe_.data(), room), peeks_ ? MSG_PEEK : 0,
                        [self = shared_from_this()](const boost::system::error_code& ec,
                                                    std::size_t size) { self->on_read(ec, size); });
}

void Connection::on_read(const boost::system::error_code& ec, std::size_t size) {
  if (closed_ || paused_) return;
  stall_.reset();
  // A stall was noticed while the receive was under way: what it peeked is read again, plainly.
  if (ec == asio::error::operation_aborted || peeks_ != peeking()) return read_more();
  if (ec == asio::error::eof) {
    return close(lost(reader_.partial() ? "the peer closed the connection inside a frame"
                                        : "the peer closed the connection"));
  }
  if (ec) {
    Error why = asio_error(ec, "receive", "from the ttrpc peer");
    why.code = Code::kUnavailable;
    return close(std::move(why));
  }
  take(std::string_view(probe_.data(), size));
  take_what_is_there();
  deliver();
  read_more();
}

void Connection::take(std::string_view bytes) {
  reader_.feed(bytes);
  if (peeks_) peeked_ += bytes.size();
}

// The probe has shown that there is something; errors and the end are seen by the next probe.
void Connection::take_what_is_there() {
  std::size_t room = kReadPiece;
  if (plain_) room = static_cast<std::size_t>(std::min<std::uint64_t>(room, reader_.missing()));
  if (room == 0) return;
  const ssize_t size =
      ::recv(socket_.native_handle(), scratch(), room, MSG_DONTWAIT | (peeks_ ? MSG_PEEK : 0));
  if (size > 0) take(std::string_view(scratch(), static_cast<std::size_t>(size)));
}

void Connection::deliver() {
  while (!closed_ && !paused_) {
    Result<std::optional<FrameReader::Frame>> frame = reader_.next();
    if (!frame) return close(std::move(frame).error().context("bad frame"));
    if (!*frame) break;
    if (!admit(**frame)) continue;
    const auto user = user_.lock();
    if (!user) return close(lost("nobody uses the connection"));
    user->on_frame(**frame);
  }
  if (!closed_ && peeking() && reader_.frame_size().value_or(0) > kPeekLimit) read_plainly();
}

// Journal and consume; false when the frame is not to be handed on.
bool Connection::admit(const FrameReader::Frame& frame) {
  if (!journal_) return true;
  const bool skip = already_journalled(frame.header);
  if (!skip && frame.header.type == kTypeRequest && !frame.oversized) {
    if (Result<> noted = journal_->append(frame.header.stream, frame.bytes); !noted) {
      close(std::move(noted).error().context("journal a request"));
      return false;
    }
  }
  if (plain_) {
    plain_ = false;
    journal_->set_torn(Journal::Direction::kInput, false);
  } else if (!consume(frame.bytes.size())) {
    return false;
  }
  return !skip;
}

bool Connection::already_journalled(const FrameHeader& header) {
  if (header.type != kTypeRequest) return false;
  if (journalled_ != 0 && header.stream <= journalled_) return true;
  // From the first new request on, a low stream id is the peer's fault.
  journalled_ = 0;
  return false;
}

bool Connection::consume(std::size_t size) {
  peeked_ -= size;
  while (size > 0) {
    const ssize_t got =
        ::recv(socket_.native_handle(), scratch(), std::min(size, kReadPiece), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      close(Error::make(Code::kInternal, "bytes that were peeked cannot be consumed"));
      return false;
    }
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

// Takes the frame that has begun out of the socket piece by piece.
void Connection::read_plainly() {
  plain_ = true;
  journal_->set_torn(Journal::Direction::kInput, true);
  if (consume(peeked_) && !rewind_peek(socket_.native_handle())) {
    close(Error::from_errno("setsockopt", "SO_PEEK_OFF"));
  }
}

void Connection::watch_for_stall() {
  stall_ = std::make_unique<IoTimer>(socket_.get_executor(), kStallTime);
  stall_->async_wait([weak = weak_from_this()](const boost::system::error_code& ec) {
    const auto self = weak.lock();
    if (ec || !self || self->closed_ || self->paused_ || !self->peeking()) return;
    if (!self->reader_.partial()) return;
    self->read_plainly();
    boost::system::error_code ignored;
    if (!self->closed_) self->socket_.cancel(ignored);
  });
}

void Connection::send(std::uint32_t stream, std::string frame) {
  if (closed_) return;
  queued_ += frame.size() + kFrameOverhead;
  output_.push_back({stream, std::move(frame)});
  flush();
  if (queued_ > kMaxQueuedOutput) {
    close(Error::make(Code::kResourceExhausted, "the peer does not read: {} bytes wait for it",
                      queued_));
  }
}

void Connection::flush() {
  if (closed_ || waiting_for_room_ || output_.empty()) return;
  while (!output_.empty()) {
    Output& next = output_.front();
    if (journal_ && next.sent == 0 && next.frame.size() > kSendPiece) {
      journal_->set_torn(Journal::Direction::kOutput, true);
    }
    while (next.sent < next.frame.size()) {
      const std::size_t piece = std::min(next.frame.size() - next.sent, kSendPiece);
      const ssize_t sent = ::send(socket_.native_handle(), next.frame.data() + next.sent, piece,
                                  MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno == EINTR) continue;
        if (errno == EAGAIN) return wait_until_writable();
        Error why = Error::from_errno("send", "to the ttrpc peer");
        why.code = Code::kUnavailable;
        return close(std::move(why));
      }
      next.sent += static_cast<std::size_t>(sent);
    }
    if (journal_) {
      if (next.frame.size() > kSendPiece) journal_->set_torn(Journal::Direction::kOutput, false);
      journal_->strike(next.stream);
    }
    queued_ -= next.frame.size() + kFrameOverhead;
    output_.pop_front();
  }
  if (const auto user = user_.lock()) user->on_flushed();
}

void Connection::wait_until_writable() {
  waiting_for_room_ = true;
  socket_.async_wait(Socket::wait_write,
                     [self = shared_from_this()](const boost::system::error_code&) {
                       // Also after stop_reading() has cancelled the wait.
                       self->waiting_for_room_ = false;
                       self->flush();
                     });
}

}  // namespace kuasar::ttrpc
