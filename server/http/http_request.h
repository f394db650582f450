// The head of an HTTP/1 request. Pure, thread-safe. What it does not understand it refuses: a strict reader has no two
// opinions with a proxy in front of it.
#pragma once

#include <string>
#include <string_view>

namespace longhaul::server {

struct HttpRequest {
  std::string method;
  std::string path;           // without the query, as sent: nothing is decoded, because no page's path needs it
  std::string host;           // of the Host header
  std::string authorization;  // "" = none
  std::string peer;           // the other end's address; the server fills it in
};

struct HttpHead {
  HttpRequest request;
  int status = 200;  // else the answer: 400 malformed, 505 another version
};

// `head` ends with the blank line. Lines end with CRLF.
HttpHead ParseHttpHead(std::string_view head);

// Whether a Host header names this machine's loopback: "localhost", "127.0.0.1", "[::1]", with or without a port. A
// page elsewhere that resolves its own name to 127.0.0.1 makes a browser send that name.
bool NamesLoopback(std::string_view host);

}  // namespace longhaul::server
