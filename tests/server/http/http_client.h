// One HTTP/1.1 request over a socket of its own, to the end of the connection.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "base/check.h"
#include "base/unique_fd.h"

namespace longhaul::server {

struct HttpAnswer {
  std::string head;  // status line and headers
  std::string body;
  int status() const { return head.size() < 12 ? 0 : std::stoi(head.substr(9, 3)); }
};

inline UniqueFd ConnectTo(int port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  LH_CHECK(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "connect");
  return fd;
}

inline HttpAnswer SplitAnswer(const std::string& all) {
  const size_t end = all.find("\r\n\r\n");
  return end == std::string::npos ? HttpAnswer{all, ""} : HttpAnswer{all.substr(0, end), all.substr(end + 4)};
}

inline HttpAnswer ReadAnswer(const UniqueFd& fd) {
  std::string all;
  char buffer[4096];
  for (ssize_t n; (n = ::recv(fd.get(), buffer, sizeof(buffer), 0)) > 0;) all.append(buffer, static_cast<size_t>(n));
  return SplitAnswer(all);
}

inline HttpAnswer SendRaw(int port, const std::string& request) {
  const UniqueFd fd = ConnectTo(port);
  LH_CHECK(::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size()),
           "send");
  return ReadAnswer(fd);
}

inline HttpAnswer Fetch(int port, const std::string& path, const std::string& method = "GET") {
  return SendRaw(port, method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
}

}  // namespace longhaul::server
