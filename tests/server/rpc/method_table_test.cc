// The table of methods is complete, and what it says is what happens: every method of every proto is in it, and every
// one of them is called over TLS without credentials and with each scope.
#include "server/rpc/method_table.h"

#include <filesystem>
#include <regex>
#include <set>

#include "tests/server/rpc/raw_call.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

std::string ShortName(const std::string& package, const std::string& service, const std::string& method) {
  return (package == "longhaul.v1" ? "" : package + ".") + service + "/" + method;
}

// Read from the files, not from what is linked in: a service that nobody serves yet has to be in the table, too.
std::set<std::string> MethodsOfProtos() {
  std::set<std::string> methods;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(LONGHAUL_SOURCE_DIR "/proto")) {
    if (entry.path().extension() != ".proto") continue;
    const std::string text = std::regex_replace(*ReadFile(entry.path().string(), 1 << 20), std::regex("//[^\n]*"), "");
    std::smatch package;
    LH_CHECK(std::regex_search(text, package, std::regex(R"(\bpackage\s+([\w.]+)\s*;)")), entry.path().string());
    const std::regex word(R"(\b(service|rpc)\s+(\w+))");
    std::string service;
    for (std::sregex_iterator it(text.begin(), text.end(), word), end; it != end; ++it) {
      if ((*it)[1] == "service") {
        service = (*it)[2];
      } else {
        methods.insert(ShortName(package[1], service, (*it)[2]));
      }
    }
  }
  return methods;
}

std::string FullName(std::string_view name) {
  const bool ours = name.find('.') == std::string_view::npos;
  return (ours ? "/longhaul.v1." : "/") + std::string(name);
}

TEST(MethodTableTest, HasEveryMethodOfEveryProtoAndNoOther) {
  std::set<std::string> table;
  for (const MethodRule& rule : kMethods) EXPECT_TRUE(table.insert(std::string(rule.name)).second) << rule.name;
  const std::set<std::string> expected = MethodsOfProtos();
  EXPECT_EQ(expected.size(), 30u)
      << "the protos were not read; or there is a new method: then correct this number, too";
  EXPECT_EQ(table, expected);
}

TEST(MethodTableTest, WhatChangesSomethingIsAuditedAndNeedsMoreThanViewing) {
  for (const MethodRule& rule : kMethods) {
    EXPECT_FALSE(rule.audited && (rule.scopes & static_cast<unsigned>(Scope::kViewer)) != 0) << rule.name;
  }
}

class EveryMethodTest : public SecureRpcTest {};

TEST_F(EveryMethodTest, RefusesWhoShowsNothing) {
  const Stubs nobody = With(ClientOptions());
  for (const MethodRule& rule : kMethods) {
    const RawAnswer answer = CallRaw(nobody.channel, FullName(rule.name));
    if (rule.scopes == 0) {
      EXPECT_TRUE(answer.answered || answer.status.ok()) << rule.name << ": " << answer.status.error_message();
      continue;
    }
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << rule.name;
    EXPECT_EQ(DetailsOf(answer.status).reason, "NO_CREDENTIALS") << rule.name;
  }
}

TEST_F(EveryMethodTest, RefusesEveryWrongTokenAlike) {
  const std::string revoked = MakeTokenOf("a", "admin", "*");
  Revoke(revoked);
  const std::string expired = MakeTokenOf("b", "admin", "*", "", 1);
  const std::string good = MakeTokenOf("c", "admin", "*");
  const std::string wrong = good.substr(0, 17) + std::string(60, 'a');
  std::set<std::string> answers;
  for (const std::string& token : {revoked, expired, wrong, MakeToken().text, std::string("nonsense")}) {
    const Stubs caller = As(token);
    for (const MethodRule& rule : kMethods) {
      if (rule.scopes == 0) continue;
      const grpc::Status status = CallRaw(caller.channel, FullName(rule.name)).status;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << rule.name;
      answers.insert(status.error_message() + status.error_details());
    }
  }
  EXPECT_EQ(answers.size(), 1u) << "an answer must not tell a wrong token from an expired one";
}

TEST_F(EveryMethodTest, AsksForItsScope) {
  for (const Scope scope : {Scope::kViewer, Scope::kSubmitter, Scope::kAdmin, Scope::kWorker}) {
    const unsigned held = static_cast<unsigned>(scope);
    const Stubs caller = As(MakeTokenOf("t", ScopeNames(held), "*"));
    for (const MethodRule& rule : kMethods) {
      if (rule.scopes == 0) continue;
      const grpc::Status status = CallRaw(caller.channel, FullName(rule.name)).status;
      const bool refused = DetailsOf(status).reason == "SCOPE_MISSING";
      EXPECT_EQ(refused, (EffectiveScopes(held) & rule.scopes) == 0) << rule.name << " with " << ScopeNames(held);
      EXPECT_NE(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << rule.name;
      EXPECT_TRUE(!refused || status.error_code() == grpc::StatusCode::PERMISSION_DENIED) << rule.name;
    }
  }
}

TEST_F(EveryMethodTest, AnUnknownMethodIsUnimplemented) {
  const Stubs nobody = With(ClientOptions());
  for (const char* name : {"/longhaul.v1.FineTuneService/Nothing", "/longhaul.v1.Nothing/Get", "/x", "/"}) {
    EXPECT_EQ(CallRaw(nobody.channel, name).status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << name;
  }
}

}  // namespace
}  // namespace longhaul::server
