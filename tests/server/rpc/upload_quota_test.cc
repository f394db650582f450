// What a project may have of the scheduler's disk before a job of it begins.
#include "base/env.h"
#include "base/hash.h"
#include "storage/sqlite_db.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

class UploadQuotaTest : public SecureRpcTest {
 protected:
  // As an earlier process left them: the project's unfinished uploads, all but one of those that it may have.
  void SetUp() override {
    const std::string uploads = JoinPath(dir_.path(), "uploads");
    LH_CHECK(CreateDirs(uploads).ok(), uploads);
    for (int i = 1; i < kMost; ++i) {
      const std::string name = Sha256Hex(std::to_string(i)) + "-9-" + Sha256Hex("red").substr(0, 16) + ".part";
      LH_CHECK(WriteFileAtomic(JoinPath(uploads, name), "x").ok(), name);
    }
    SecureRpcTest::SetUp();
  }

  // The first byte of it.
  static grpc::Status BeginAs(const Stubs& stubs, const std::string& content) {
    grpc::ClientContext context;
    v1::WriteBlobResponse response;
    const auto writer = stubs.blobs->Write(&context, &response);
    v1::WriteBlobRequest request;
    request.mutable_blob()->set_sha256(Sha256Hex(content));
    request.mutable_blob()->set_size_bytes(static_cast<int64_t>(content.size()));
    request.set_data(content.substr(0, 1));
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }

  static constexpr int kMost = 1'000;
};

TEST_F(UploadQuotaTest, UnfinishedUploadsAreCounted) {
  const Stubs red = As(MakeTokenOf("red", "submitter", "red"));
  const Stubs blue = As(MakeTokenOf("blue", "submitter", "blue"));
  const Stubs all = As(MakeTokenOf("all", "submitter", "*"));
  const Stubs fleet = As(MakeTokenOf("fleet", "worker", "*"));
  ASSERT_TRUE(BeginAs(red, "the last one").ok());
  const grpc::Status refused = BeginAs(red, "one too many");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "TOO_MANY_UPLOADS");
  for (const Stubs* other : {&blue, &all, &fleet}) EXPECT_TRUE(BeginAs(*other, "one too many").ok());
  ASSERT_TRUE(UploadAs(red, "the last one").ok()) << "what has begun can be finished";
  EXPECT_TRUE(BeginAs(red, "one too many").ok());
}

TEST_F(UploadQuotaTest, BlobsAreCounted) {
  const Stubs red = As(MakeTokenOf("red", "submitter", "red"));
  const Stubs blue = As(MakeTokenOf("blue", "submitter", "blue"));
  {
    const auto db = storage::Db::Open(JoinPath(dir_.path(), "state.db"), storage::Db::Mode::kReadWrite);
    ASSERT_TRUE(db.ok()) << db.status();
    const absl::Status filled = (*db)->Exec(R"sql(
BEGIN IMMEDIATE;
CREATE TEMP TABLE numbers AS WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM numbers WHERE n<99999)
  SELECT printf('%064x', n) AS name FROM numbers;
INSERT INTO blobs SELECT name, 1, 9e15, 0 FROM numbers;
INSERT INTO blob_projects SELECT 'red', name FROM numbers;
COMMIT;)sql");
    ASSERT_TRUE(filled.ok()) << filled;
  }
  ASSERT_TRUE(UploadAs(red, "the last one").ok());
  const grpc::Status refused = UploadAs(red, "one too many");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(refused).reason, "TOO_MANY_UPLOADS");
  EXPECT_TRUE(UploadAs(blue, "one too many").ok());
}

}  // namespace
}  // namespace longhaul::server
