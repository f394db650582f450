#include "server/http/http_connection.h"

#include <openssl/err.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/limits.h"

namespace longhaul::server {
namespace {

constexpr int kBufferBytes = 4096;

}  // namespace

HttpConnection::HttpConnection(UniqueFd fd, SslPtr ssl, std::string peer, int64_t deadline_boot_nanos)
    : fd_(std::move(fd)),
      ssl_(std::move(ssl)),
      peer_(std::move(peer)),
      deadline_boot_nanos_(deadline_boot_nanos),
      state_(ssl_ == nullptr ? State::kHead : State::kHandshake) {}

HttpConnection::Want HttpConnection::Advance(const std::function<std::string(const std::string& head)>& answer) {
  State before = State::kOver;
  Want want = Want::kNothing;
  do {
    before = state_;
    switch (state_) {
      case State::kHandshake:
        want = Handshake();
        break;
      case State::kHead:
        want = ReadHead(answer);
        break;
      case State::kReply:
        want = WriteReply();
        break;
      case State::kDrain:
        want = Drain();
        break;
      case State::kOver:
        return Want::kNothing;
    }
  } while (state_ != before);
  return want;
}

HttpConnection::Want HttpConnection::Handshake() {
  ERR_clear_error();
  if (Outcome(SSL_accept(ssl_.get())) > 0) state_ = State::kHead;
  return want_;
}

HttpConnection::Want HttpConnection::ReadHead(const std::function<std::string(const std::string& head)>& answer) {
  char buffer[kBufferBytes];
  while (true) {
    const int count = Read(buffer, kBufferBytes);
    if (count == 0) return Want::kNothing;
    if (count < 0) return want_;
    // The end may have begun in what was there before.
    const size_t look_from = head_.size() < 3 ? 0 : head_.size() - 3;
    head_.append(buffer, static_cast<size_t>(count));
    const size_t end = head_.find("\r\n\r\n", look_from);
    if (end != std::string::npos) {
      reply_ = answer(head_.substr(0, end + 4));
    } else if (head_.size() > static_cast<size_t>(limits::kMaxHttpHeaderBytes)) {
      reply_ = answer("");
    } else {
      continue;
    }
    state_ = State::kReply;
    return Want::kWrite;
  }
}

HttpConnection::Want HttpConnection::WriteReply() {
  while (written_ < reply_.size()) {
    const size_t left = std::min<size_t>(reply_.size() - written_, 1 << 20);
    const int count = Write(reply_.data() + written_, static_cast<int>(left));
    if (count <= 0) return want_;
    written_ += static_cast<size_t>(count);
  }
  if (ssl_ != nullptr) {
    ERR_clear_error();
    SSL_shutdown(ssl_.get());  // our half; the other's is not waited for
  }
  ::shutdown(fd_.get(), SHUT_WR);
  state_ = State::kDrain;
  return Want::kRead;
}

// Closing a socket with unread bytes resets it, and a reset takes the reply away from a client that has not read it
// yet. So the rest is read and thrown away, up to the deadline.
HttpConnection::Want HttpConnection::Drain() {
  char buffer[kBufferBytes];
  while (true) {
    const ssize_t count = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
    if (count > 0) continue;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Want::kRead;
    state_ = State::kOver;
    return Want::kNothing;
  }
}

int HttpConnection::Read(char* buffer, int size) {
  if (ssl_ != nullptr) {
    ERR_clear_error();
    return Outcome(SSL_read(ssl_.get(), buffer, size));
  }
  const ssize_t count = ::recv(fd_.get(), buffer, static_cast<size_t>(size), 0);
  const bool again = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  want_ = again ? Want::kRead : Want::kNothing;
  return static_cast<int>(count);
}

int HttpConnection::Write(const char* data, int size) {
  if (ssl_ != nullptr) {
    ERR_clear_error();
    return Outcome(SSL_write(ssl_.get(), data, size));
  }
  const ssize_t count = ::send(fd_.get(), data, static_cast<size_t>(size), MSG_NOSIGNAL);
  const bool again = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  want_ = again ? Want::kWrite : Want::kNothing;
  return static_cast<int>(count);
}

int HttpConnection::Outcome(int result) {
  if (result > 0) return result;
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      want_ = Want::kRead;
      return -1;
    case SSL_ERROR_WANT_WRITE:
      want_ = Want::kWrite;
      return -1;
    case SSL_ERROR_ZERO_RETURN:
      want_ = Want::kNothing;
      return 0;
    default:
      want_ = Want::kNothing;
      return -1;
  }
}

}  // namespace longhaul::server
