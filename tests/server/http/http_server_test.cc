#include "server/http/http_server.h"

#include "base/error.h"
#include "base/limits.h"
#include "gtest/gtest.h"
#include "tests/server/http/http_client.h"

namespace longhaul::server {
namespace {

const Clock& Time() {
  static const RealClock clock;
  return clock;
}

std::unique_ptr<HttpServer> MustStart(HttpPages pages) {
  auto server = HttpServer::Start({"127.0.0.1", 0}, std::move(pages), &Time());
  LH_CHECK(server.ok(), std::string(server.status().message()));
  return *std::move(server);
}

TEST(HttpServerTest, ServesItsPagesAndNothingElse) {
  int calls = 0;
  const auto server = MustStart({{"/", [&](const HttpRequest&) {
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

TEST(HttpServerTest, ALargeHeadIsRefusedAndTheAnswerArrives) {
  const auto server = MustStart({});
  const HttpAnswer answer =
      SendRaw(server->port(), "GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(100'000, 'a') + "\r\n\r\n");
  EXPECT_EQ(answer.status(), 431);
}

TEST(HttpServerTest, WhoSaysNothingHoldsNobodyUp) {
  const auto server = MustStart({{"/", [](const HttpRequest&) { return HttpReply{200, "text/plain", "fine"}; }}});
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 100; ++i) silent.push_back(ConnectTo(server->port()));
  EXPECT_EQ(Fetch(server->port(), "/").body, "fine");
}

TEST(HttpServerTest, PastTheLimitTheOldestConnectionGoes) {
  const auto server = MustStart({{"/", [](const HttpRequest&) { return HttpReply{200, "text/plain", "fine"}; }}});
  std::vector<UniqueFd> silent;
  for (int i = 0; i < limits::kMaxHttpConnections + 1; ++i) silent.push_back(ConnectTo(server->port()));
  char byte = 0;
  EXPECT_LE(::recv(silent.front().get(), &byte, 1, 0), 0) << "the server has closed it";
  EXPECT_EQ(Fetch(server->port(), "/").body, "fine");
}

TEST(HttpServerTest, AClientThatNeverReadsHoldsNobodyUp) {
  const std::string large(8 << 20, 'x');
  const auto server = MustStart({{"/large",
                                  [&](const HttpRequest&) {
                                    return HttpReply{200, "text/plain", large};
                                  }},
                                 {"/", [](const HttpRequest&) {
                                    return HttpReply{200, "text/plain", "fine"};
                                  }}});
  const std::string request = "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n";
  const UniqueFd slow = ConnectTo(server->port());
  ASSERT_GT(::send(slow.get(), request.data(), request.size(), 0), 0);
  EXPECT_EQ(Fetch(server->port(), "/").body, "fine");
  EXPECT_EQ(ReadAnswer(slow).body, large) << "and gets it when it does read";
}

TEST(HttpServerTest, AHeadMayComeInPieces) {
  const auto server = MustStart({{"/", [](const HttpRequest& request) {
                                    return HttpReply{200, "text/plain", request.host + " " + request.peer};
                                  }}});
  const UniqueFd fd = ConnectTo(server->port());
  for (const char c : std::string("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")) {
    ASSERT_EQ(::send(fd.get(), &c, 1, MSG_NOSIGNAL), 1);
  }
  EXPECT_EQ(ReadAnswer(fd).body, "localhost 127.0.0.1");
}

TEST(HttpServerTest, SurvivesNoise) {
  const auto server = MustStart({{"/", [](const HttpRequest&) { return HttpReply{200, "text/plain", "fine"}; }}});
  SendRaw(server->port(), "not http at all\r\n\r\n");
  SendRaw(server->port(), "GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(100'000, 'a') + "\r\n\r\n");
  EXPECT_EQ(Fetch(server->port(), "/").body, "fine");
}

TEST(HttpServerTest, ATakenPortIsOneClearLine) {
  const auto first = MustStart({});
  const auto second = HttpServer::Start({"127.0.0.1", first->port()}, {}, &Time());
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
  for (const char* text : {"0.0.0.0:7070", "10.1.2.3:7070", "[::]:7070"}) {
    EXPECT_TRUE(ParseListenAddress("--listen", text, true).ok()) << text;
  }
  EXPECT_EQ(ErrorReason(ParseListenAddress("--listen", "example.org:7070", true).status()), "BAD_ADDRESS");
  for (const char* text :
       {"", "7070", ":7070", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70707", "127.0.0.1:-1", "::1:7070"}) {
    EXPECT_EQ(ErrorReason(ParseListenAddress("--listen", text).status()), "BAD_ADDRESS") << text;
  }
}

}  // namespace
}  // namespace longhaul::server
