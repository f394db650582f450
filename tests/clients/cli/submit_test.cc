// longhaul submit: --dry-run, and a Create whose answer is lost.
#include <gmock/gmock.h>

#include "base/hash.h"
#include "tests/clients/cli/cli_fixture.h"

namespace longhaul::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using SubmitTest = CliTest;

TEST_F(SubmitTest, DryRunStoresNothing) {
  ASSERT_EQ(Run({"submit", "--dry-run", "--model", "m", "--data", Write("d.jsonl", "{}")}), kOk) << err_.str();
  ASSERT_EQ(scheduler_.jobs.validated.size(), 1u);
  EXPECT_EQ(scheduler_.jobs.validated[0].request_id(), "");
  EXPECT_TRUE(scheduler_.jobs.created.empty());
  EXPECT_TRUE(scheduler_.blobs.blobs.empty()) << "a dry run uploads nothing";
  EXPECT_THAT(err_.str(), HasSubstr("nothing was uploaded or stored"));
}

// A file of this machine is uploaded by a submit; what the job file names by its hash has to be there.
TEST_F(SubmitTest, DryRunMissesDataThatNobodyHasSent) {
  const std::string held = "{\"text\": \"held\"}\n";
  const std::string sha256 = Sha256Hex(held);
  const std::string file = Write(
      "job.yaml", "model: m\ndataset: {sha256: " + sha256 + ", size_bytes: " + std::to_string(held.size()) + "}\n");
  EXPECT_EQ(Run({"submit", "--dry-run", "-f", file}), kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("[DATASET_NOT_UPLOADED]"));
  EXPECT_THAT(err_.str(), HasSubstr(sha256));
  EXPECT_THAT(err_.str(), HasSubstr("what to do: give the file itself"));
  scheduler_.blobs.blobs[sha256] = held;
  EXPECT_EQ(Run({"submit", "--dry-run", "-f", file}), kOk) << err_.str();
  // The other one, too.
  const std::string eval = Sha256Hex("eval");
  const std::string both =
      Write("both.yaml", "model: m\ndataset: {sha256: " + sha256 + ", size_bytes: " + std::to_string(held.size()) +
                             "}\neval_dataset: {sha256: " + eval + ", size_bytes: 4}\n");
  EXPECT_EQ(Run({"submit", "--dry-run", "-f", both}), kRefused);
  EXPECT_THAT(err_.str(), HasSubstr(eval));
  EXPECT_TRUE(scheduler_.jobs.created.empty());
}

TEST_F(SubmitTest, ALostAnswerIsAskedForAgainWithTheSameId) {
  scheduler_.jobs.lost_creates = 2;
  ASSERT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", "{}")}), kOk) << err_.str();
  ASSERT_EQ(scheduler_.jobs.created.size(), 3u);
  EXPECT_EQ(scheduler_.jobs.created[0].request_id(), scheduler_.jobs.created[2].request_id());
  EXPECT_THAT(err_.str(), HasSubstr("; asking again for 30"));
  EXPECT_THAT(err_.str(), Not(HasSubstr("--request-id")));
}

TEST_F(SubmitTest, WhoseAnswerIsLostForGoodIsToldHowToRepeatIt) {
  const std::string data = Write("d.jsonl", "{}");
  for (const grpc::StatusCode lost : {grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::DEADLINE_EXCEEDED}) {
    scheduler_.jobs.created.clear();
    scheduler_.jobs.lost = lost;
    scheduler_.jobs.lost_creates = 1;
    EXPECT_NE(Run({"submit", "--model", "m", "--data", data, "--retry-for", "0"}), kOk);
    ASSERT_EQ(scheduler_.jobs.created.size(), 1u);
    EXPECT_THAT(err_.str(),
                HasSubstr("--request-id " + scheduler_.jobs.created[0].request_id() + " makes it or finds"));
  }
  scheduler_.jobs.lost_creates = 1;
  Run({"submit", "--model", "m", "--data", data, "--retry-for", "0", "--request-id", "mine"});
  EXPECT_THAT(err_.str(), HasSubstr("--request-id mine "));
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", data, "--retry-for", "long"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("--retry-for"));
  // A refusal is an answer.
  scheduler_.jobs.create_status = DetailedError(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD", "no");
  Run({"submit", "--model", "m", "--data", data});
  EXPECT_THAT(err_.str(), Not(HasSubstr("--request-id")));
}

}  // namespace
}  // namespace longhaul::cli
