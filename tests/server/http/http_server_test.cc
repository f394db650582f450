#include "server/http/http_server.h"

#include "base/error.h"
#include "gtest/gtest.h"
#include "tests/server/http/http_client.h"

namespace longhaul::server {
namespace {

std::unique_ptr<HttpServer> MustStart(HttpPages pages) {
  auto server = HttpServer::Start({"127.0.0.1", 0}, std::move(pages));
  LH_CHECK(server.ok(), std::string(server.status().message()));
  return *std::move(server);
}

TEST(HttpServerTest, ServesItsPagesAndNothingElse) {
  int calls = 0;
  const auto server = MustStart({{"/", [&] {
                                    return HttpReply{200, "text/plain", "page " + std::to_string(++calls)};
                                  }}});
  ASSERT_GT(server->port(), 0);
  const HttpAnswer first = Fetch(server->port(), "/");
  EXPECT_EQ(first.status(), 200);
  EXPECT_EQ(first.body, "page 1");
  EXPECT_NE(first.head.find("Content-Type: text/plain"), std::string::npos);
  EXPECT_EQ(Fetch(server->port(), "/").body, "page 2");
  const HttpAnswer head = Fetch(server->port(), "/", "HEAD");
  EXPECT_EQ(head.status(), 200);
  EXPECT_EQ(head.body, "");
  EXPECT_EQ(Fetch(server->port(), "/other").status(), 404);
  EXPECT_EQ(Fetch(server->port(), "/../../etc/passwd").status() / 100, 4);
  EXPECT_EQ(Fetch(server->port(), "/%2e%2e/etc/passwd").status() / 100, 4);
  EXPECT_EQ(Fetch(server->port(), "/", "POST").status(), 405);
}

TEST(HttpServerTest, SurvivesNoise) {
  const auto server = MustStart({{"/", [] { return HttpReply{200, "text/plain", "fine"}; }}});
  SendRaw(server->port(), "not http at all\r\n\r\n");
  SendRaw(server->port(), "GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(100'000, 'a') + "\r\n\r\n");
  EXPECT_EQ(Fetch(server->port(), "/").body, "fine");
}

TEST(HttpServerTest, ATakenPortIsOneClearLine) {
  const auto first = MustStart({});
  const auto second = HttpServer::Start({"127.0.0.1", first->port()}, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(ErrorReason(second.status()), "PORT_TAKEN");
  EXPECT_EQ(std::string(second.status().message()),
            "cannot listen on 127.0.0.1:" + std::to_string(first->port()) + ": Address already in use");
}

TEST(ListenAddressTest, ParsesLoopbackAndRefusesTheRest) {
  for (const char* text : {"127.0.0.1:7070", "localhost:0", "[::1]:7070"}) {
    const auto address = ParseListenAddress("--listen", text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->ToString(), text);
  }
  for (const char* text : {"0.0.0.0:7070", "10.1.2.3:7070", "[::]:7070", "example.org:7070", "127.example.org:7070"}) {
    const auto address = ParseListenAddress("--listen", text);
    EXPECT_EQ(ErrorReason(address.status()), "TLS_REQUIRED") << text;
  }
  for (const char* text :
       {"", "7070", ":7070", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70707", "127.0.0.1:-1", "::1:7070"}) {
    EXPECT_EQ(ErrorReason(ParseListenAddress("--listen", text).status()), "BAD_ADDRESS") << text;
  }
}

}  // namespace
}  // namespace longhaul::server
