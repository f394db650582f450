#include "server/http/http_request.h"

#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

TEST(HttpRequestTest, ReadsWhatItNeeds) {
  const HttpHead head = ParseHttpHead(
      "GET /metrics?x=%2e&y HTTP/1.1\r\nhOsT:  example.org:7071 \r\nAccept: */*\r\nAUTHORIZATION: Bearer abc\r\n\r\n");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.request.method, "GET");
  EXPECT_EQ(head.request.path, "/metrics");
  EXPECT_EQ(head.request.host, "example.org:7071");
  EXPECT_EQ(head.request.authorization, "Bearer abc");
  EXPECT_EQ(ParseHttpHead("HEAD / HTTP/1.0\r\n\r\n").status, 200) << "1.0 needs no host";
}

TEST(HttpRequestTest, RefusesWhatCouldBeReadInTwoWays) {
  const std::string get = "GET / HTTP/1.1\r\n";
  const std::string host = "Host: localhost\r\n";
  for (const std::string& bad : {
           std::string("\r\n\r\n"),
           std::string("GET\r\n\r\n"),
           std::string("GET /\r\n\r\n"),
           std::string("GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
           std::string("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
           std::string("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
           std::string("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
           std::string("G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
           std::string("GET / HTTZ/1.1\r\nHost: a\r\n\r\n"),
           get + "\r\n",                // no host
           get + host + host + "\r\n",  // two
           get + host + "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
           get + host + "X : spaces before the colon\r\n\r\n",
           get + host + " folded: line\r\n\r\n",
           get + host + "no colon\r\n\r\n",
           get + host + ": no name\r\n\r\n",
           get + host + std::string("X: a\0b\r\n\r\n", 10),
           get + host + "X: bare\nY: newline\r\n\r\n",
       }) {
    EXPECT_EQ(ParseHttpHead(bad).status, 400) << bad;
  }
  EXPECT_EQ(ParseHttpHead("GET / HTTP/2.0\r\nHost: a\r\n\r\n").status, 505);
}

TEST(HttpRequestTest, KnowsTheLoopbackByName) {
  for (const char* host : {"localhost", "LOCALHOST:7071", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:7071"}) {
    EXPECT_TRUE(NamesLoopback(host)) << host;
  }
  for (const char* host : {"", "example.org", "localhost.example.org", "127.0.0.1.example.org", "[::1].example.org",
                           "[::2]", "10.0.0.1", "xlocalhost", ":80"}) {
    EXPECT_FALSE(NamesLoopback(host)) << host;
  }
}

}  // namespace
}  // namespace longhaul::server
