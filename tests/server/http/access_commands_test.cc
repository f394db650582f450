// `longhauld token` and `longhauld audit`, as an administrator runs them.
#include "server/access_commands.h"

#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "base/check.h"
#include "base/env.h"
#include "base/error.h"
#include "base/hash.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/core/access.h"
#include "storage/backup.h"

namespace longhaul::server {
namespace {

class AccessCommandsTest : public ::testing::Test {
 protected:
  AccessCommandsTest() {
    const char* base = std::getenv("TMPDIR");
    dir_ = JoinPath(base == nullptr ? "/tmp" : base, "longhaul-token-XXXXXX");
    LH_CHECK(::mkdtemp(dir_.data()) != nullptr, dir_);
  }
  ~AccessCommandsTest() override { LH_CHECK(RemoveTree(dir_).ok(), dir_); }

  absl::Status Run(std::vector<std::string> arguments) {
    out_.str("");
    err_.str("");
    clock_.AdvanceMillis(1);  // lists are in the order of creation
    CLI::App app("longhauld");
    app.fallthrough();
    std::string state_dir;
    app.add_option("--state-dir", state_dir)->required();
    const AccessCommands commands(&app, &state_dir);
    arguments.insert(arguments.end(), {"--state-dir", dir_});
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes a vector from its back
    try {
      app.parse(arguments);
    } catch (const CLI::ParseError& error) {
      return absl::InvalidArgumentError(error.what());
    }
    LH_CHECK(commands.chosen(), "no command");
    return commands.Run(clock_, out_, err_);
  }
  // Lines of the output as JSON.
  std::vector<nlohmann::json> Lines() {
    std::vector<nlohmann::json> lines;
    std::istringstream text(out_.str());
    for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  FakeClock clock_;
  std::string dir_;
  std::ostringstream out_;
  std::ostringstream err_;
};

TEST_F(AccessCommandsTest, ATokenIsShownOnceAndStoredHashed) {
  const absl::Status made = Run({"token", "create", "--name", "ci", "--scope", "submitter", "--project", "red"});
  ASSERT_TRUE(made.ok()) << made;
  const std::string text = out_.str().substr(0, out_.str().size() - 1);
  EXPECT_EQ(out_.str(), text + "\n") << "alone on its line, for scripts";
  ASSERT_TRUE(TokenId(text).has_value());
  EXPECT_NE(err_.str().find("shown this once"), std::string::npos);

  ASSERT_TRUE(Run({"token", "list"}).ok());
  EXPECT_NE(out_.str().find(*TokenId(text)), std::string::npos);
  EXPECT_EQ(out_.str().find(text), std::string::npos);
  // Nowhere in the state folder, in whatever file.
  const auto names = ListDir(dir_);
  ASSERT_TRUE(names.ok());
  for (const std::string& name : *names) {
    const auto bytes = ReadFile(JoinPath(dir_, name), 64 << 20);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(bytes->find(text.substr(text.size() - 60)), std::string::npos) << name;
  }

  ASSERT_TRUE(Run({"token", "list", "--json"}).ok());
  const nlohmann::json line = Lines().at(0);
  EXPECT_EQ(line["name"], "ci");
  EXPECT_EQ(line["scopes"], "submitter");
  EXPECT_EQ(line["project"], "red");
  EXPECT_EQ(line["state"], "valid");
}

TEST_F(AccessCommandsTest, TokensEndInTimeAndWhenTheyAreRevoked) {
  ASSERT_TRUE(Run({"token", "create", "--name", "short", "--scope", "viewer", "--expires-in", "1h"}).ok());
  ASSERT_TRUE(Run({"token", "create", "--name", "long", "--scope", "viewer", "--expires-in", "never"}).ok());
  const std::string id = *TokenId(out_.str().substr(0, out_.str().size() - 1));
  clock_.AdvanceMillis(3'600'000);
  ASSERT_TRUE(Run({"token", "list", "--json"}).ok());
  EXPECT_EQ(Lines().at(0)["state"], "expired");
  EXPECT_EQ(Lines().at(1)["state"], "valid");
  EXPECT_EQ(Lines().at(1)["expires"], "");
  ASSERT_TRUE(Run({"token", "revoke", id}).ok());
  ASSERT_TRUE(Run({"token", "list", "--json"}).ok());
  EXPECT_EQ(Lines().at(1)["state"], "revoked");
  EXPECT_EQ(ErrorReason(Run({"token", "revoke", "nosuchid"})), "TOKEN_NOT_FOUND");
}

TEST_F(AccessCommandsTest, AdministratorsAndWorkersServeEveryProject) {
  ASSERT_TRUE(Run({"token", "create", "--name", "a", "--scope", "admin"}).ok());
  ASSERT_TRUE(Run({"token", "create", "--name", "w", "--scope", "worker", "--worker-id", "gpu-1"}).ok());
  ASSERT_TRUE(Run({"token", "create", "--name", "v", "--scope", "viewer"}).ok());
  ASSERT_TRUE(Run({"token", "list", "--json"}).ok());
  EXPECT_EQ(Lines().at(0)["project"], "*");
  EXPECT_EQ(Lines().at(1)["project"], "*");
  EXPECT_EQ(Lines().at(1)["worker_id"], "gpu-1");
  EXPECT_EQ(Lines().at(2)["project"], "default");
}

TEST_F(AccessCommandsTest, OnlyCreateMakesAStateFolder) {
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"token", "list"}, {"token", "revoke", "x"}, {"audit"}}) {
    EXPECT_EQ(ErrorReason(Run(command)), "FILE_NOT_FOUND");
  }
  EXPECT_TRUE(ListDir(dir_)->empty());
}

TEST_F(AccessCommandsTest, SaysWhichFlagIsWrong) {
  const auto refused = [&](std::vector<std::string> flags, const std::string& flag) {
    flags.insert(flags.begin(), {"token", "create"});
    const absl::Status status = Run(flags);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find(flag), std::string::npos) << status;
    EXPECT_EQ(out_.str(), "");
  };
  refused({"--name", "a", "--scope", "root"}, "--scope");
  refused({"--name", "a b", "--scope", "viewer"}, "--name");
  refused({"--scope", "viewer"}, "--name");
  refused({"--name", "a", "--scope", "admin", "--project", "red"}, "--project");
  refused({"--name", "a", "--scope", "viewer", "--worker-id", "w"}, "--worker-id");
  for (const char* lifetime : {"", "90", "d", "-1d", "0s", "1w", "3651d", "99999999999999999999d", "1d2h"}) {
    refused({"--name", "a", "--scope", "viewer", "--expires-in", lifetime}, "--expires-in");
  }
  EXPECT_TRUE(ListDir(dir_)->empty()) << "nothing was made";
}

TEST_F(AccessCommandsTest, LifetimesAreExact) {
  EXPECT_EQ(*ParseLifetime("45s"), 45'000'000);
  EXPECT_EQ(*ParseLifetime("30m"), int64_t{30} * 60 * 1'000'000);
  EXPECT_EQ(*ParseLifetime("3650d"), int64_t{3650} * 24 * 3600 * 1'000'000);
  EXPECT_EQ(*ParseLifetime("never"), 0);
}

TEST_F(AccessCommandsTest, TheCommandsThemselvesAreAudited) {
  ASSERT_TRUE(Run({"token", "create", "--name", "ci", "--scope", "viewer"}).ok());
  const std::string id = *TokenId(out_.str().substr(0, out_.str().size() - 1));
  ASSERT_TRUE(Run({"token", "revoke", id}).ok());
  ASSERT_TRUE(Run({"audit"}).ok());
  const auto lines = Lines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["method"], "token create");
  EXPECT_EQ(lines[0]["target"], id);
  EXPECT_EQ(std::string(lines[0]["caller"]).rfind("os:", 0), 0u);
  EXPECT_EQ(lines[1]["method"], "token revoke");
  ASSERT_TRUE(Run({"audit", "--after", "1"}).ok());
  EXPECT_EQ(Lines().size(), 1u);
  ASSERT_TRUE(Run({"audit", "--limit", "1"}).ok());
  EXPECT_EQ(Lines().at(0)["number"], 1);
}

TEST_F(AccessCommandsTest, TokensOfARestoredBackupAreConfirmedByNameOrAllAtOnce) {
  std::vector<std::string> ids;
  for (const char* name : {"a", "b", "c"}) {
    ASSERT_TRUE(Run({"token", "create", "--name", name, "--scope", "viewer"}).ok());
    ids.push_back(*TokenId(out_.str().substr(0, out_.str().size() - 1)));
  }
  const std::string original = dir_;
  dir_ = original + "-restored";
  ASSERT_TRUE(storage::BackupState(original, dir_).ok());
  const auto states = [&] {
    EXPECT_TRUE(Run({"token", "list", "--json"}).ok());
    std::string text;
    for (const nlohmann::json& line : Lines()) text += line["state"].get<std::string>() + " ";
    return text;
  };
  EXPECT_EQ(states(), "held held held ");
  EXPECT_EQ(Run({"token", "confirm"}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Run({"token", "confirm", ids[0], "--all"}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(Run({"token", "confirm", ids[1]}).ok());
  EXPECT_EQ(states(), "held valid held ");
  EXPECT_THAT(std::string(Run({"token", "confirm", ids[1]}).message()), ::testing::HasSubstr("is not held"));
  ASSERT_TRUE(Run({"token", "confirm", "--all"}).ok());
  EXPECT_EQ(err_.str(), "2 tokens are confirmed\n");
  EXPECT_EQ(states(), "valid valid valid ");
  ASSERT_TRUE(Run({"audit"}).ok());
  EXPECT_EQ(Lines().back()["method"], "token confirm");
  EXPECT_EQ(Lines().size(), 6u) << "three made, three confirmed";
  ASSERT_TRUE(RemoveTree(dir_).ok());
  dir_ = original;
}

}  // namespace
}  // namespace longhaul::server
