#include "base/limits.h"
#include "storage/sqlite_db.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {
namespace {

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  return bytes;
}

class BlobTest : public RpcTest {
 protected:
  grpc::Status Read(const std::string& sha256, int64_t offset, int64_t length, std::string* out) {
    grpc::ClientContext context;
    v1::ReadBlobRequest request;
    request.mutable_blob()->set_sha256(sha256);
    request.set_offset(offset);
    request.set_length(length);
    const auto reader = stubs_->blobs->Read(&context, request);
    v1::ReadBlobResponse response;
    out->clear();
    while (reader->Read(&response)) {
      EXPECT_LE(response.data().size(), static_cast<size_t>(limits::kBlobChunkBytes));
      *out += response.data();
    }
    return reader->Finish();
  }
  // One message, and its answer.
  grpc::Status WriteOne(const v1::WriteBlobRequest& request, v1::WriteBlobResponse* response) {
    grpc::ClientContext context;
    const auto writer = stubs_->blobs->Write(&context, response);
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }
  v1::QueryWriteStatusResponse Query(const v1::BlobName& blob) {
    v1::QueryWriteStatusRequest request;
    *request.mutable_blob() = blob;
    v1::QueryWriteStatusResponse response;
    EXPECT_TRUE(Call(*stubs_->blobs, &v1::BlobService::Stub::QueryWriteStatus, request, &response).ok());
    return response;
  }
  static v1::BlobName NameOf(const std::string& bytes) {
    v1::BlobName name;
    name.set_sha256(Sha256Hex(bytes));
    name.set_size_bytes(static_cast<int64_t>(bytes.size()));
    return name;
  }
};

// Each renewal is a write of the one dispatcher: who asks all day long costs it one an hour.
TEST_F(BlobTest, AskingForABlobRenewsItsGraceNoOftenerThanEveryHour) {
  const std::string bytes = "dataset";
  ASSERT_TRUE(Upload(bytes).ok());
  const auto db = storage::Db::Open(dir_.File("state.db"), storage::Db::Mode::kReadWrite);
  ASSERT_TRUE(db.ok()) << db.status();
  const auto grace = [&] { return (*db)->QueryInt("SELECT grace_wall_micros FROM blobs").value_or(0); };
  const auto ask = [&] {
    v1::FindMissingRequest find;
    *find.add_blobs() = NameOf(bytes);
    v1::FindMissingResponse missing;
    EXPECT_TRUE(Call(*stubs_->blobs, &v1::BlobService::Stub::FindMissing, find, &missing).ok());
    EXPECT_EQ(missing.missing_size(), 0);
  };
  const int64_t uploaded = grace();
  ASSERT_GT(uploaded, 0);
  ask();
  EXPECT_EQ(grace(), uploaded);
  ASSERT_TRUE((*db)->Exec("UPDATE blobs SET grace_wall_micros=grace_wall_micros-7200000000").ok());
  ask();
  EXPECT_GE(grace(), uploaded);
}

TEST_F(BlobTest, WhatGoesInComesOut) {
  const std::string bytes = Bytes(3 * limits::kBlobChunkBytes + 17);
  v1::FindMissingRequest find;
  *find.add_blobs() = NameOf(bytes);
  v1::FindMissingResponse missing;
  ASSERT_TRUE(Call(*stubs_->blobs, &v1::BlobService::Stub::FindMissing, find, &missing).ok());
  EXPECT_EQ(missing.missing_size(), 1);

  ASSERT_TRUE(Upload(bytes).ok());
  ASSERT_TRUE(Upload(bytes).ok());  // there already
  v1::FindMissingResponse none;
  ASSERT_TRUE(Call(*stubs_->blobs, &v1::BlobService::Stub::FindMissing, find, &none).ok());
  EXPECT_EQ(none.missing_size(), 0);
  EXPECT_TRUE(Query(NameOf(bytes)).complete());

  std::string back;
  ASSERT_TRUE(Read(Sha256Hex(bytes), 0, 0, &back).ok());
  EXPECT_EQ(back, bytes);
  ASSERT_TRUE(Read(Sha256Hex(bytes), limits::kBlobChunkBytes - 3, 10, &back).ok());
  EXPECT_EQ(back, bytes.substr(static_cast<size_t>(limits::kBlobChunkBytes) - 3, 10));
  EXPECT_EQ(Read(Sha256Hex(bytes), static_cast<int64_t>(bytes.size()) + 1, 0, &back).error_code(),
            grpc::StatusCode::OUT_OF_RANGE);
}

// A size of 0 means "unknown" when a blob is read, so nothing is stored under it.
TEST_F(BlobTest, AnEmptyBlobIsRefused) {
  const grpc::Status status = Upload("");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).reason, "BLOB_NAME") << status.error_message();
}

TEST_F(BlobTest, ABrokenUploadGoesOnWhereItEnded) {
  const std::string bytes = Bytes(100'000);
  v1::WriteBlobRequest request;
  *request.mutable_blob() = NameOf(bytes);
  request.set_data(bytes.substr(0, 40'000));
  v1::WriteBlobResponse response;
  ASSERT_TRUE(WriteOne(request, &response).ok());
  EXPECT_EQ(response.committed_bytes(), 40'000);
  EXPECT_EQ(Query(NameOf(bytes)).committed_bytes(), 40'000);
  EXPECT_FALSE(Query(NameOf(bytes)).complete());

  request.set_offset(50'000);  // a gap
  request.set_data(bytes.substr(50'000));
  EXPECT_EQ(WriteOne(request, &response).error_code(), grpc::StatusCode::OUT_OF_RANGE);

  request.set_offset(40'000);
  request.set_data(bytes.substr(40'000));
  request.set_finish(true);
  ASSERT_TRUE(WriteOne(request, &response).ok());
  EXPECT_EQ(response.committed_bytes(), 100'000);
  std::string back;
  ASSERT_TRUE(Read(Sha256Hex(bytes), 0, 0, &back).ok());
  EXPECT_EQ(back, bytes);
}

TEST_F(BlobTest, OtherBytesThanNamedAreNeverABlob) {
  v1::WriteBlobRequest request;
  *request.mutable_blob() = NameOf("what was promised");
  request.set_data("what was sent....");
  request.set_finish(true);
  v1::WriteBlobResponse response;
  const grpc::Status status = WriteOne(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).reason, "BLOB_HASH_MISMATCH");
  EXPECT_FALSE(Query(NameOf("what was promised")).complete());
  EXPECT_EQ(Query(NameOf("what was promised")).committed_bytes(), 0);
}

TEST_F(BlobTest, NamesThatAreNoHashesAreRefused) {
  for (const std::string name : {"../../etc/passwd", "", "ABC", "/etc/passwd"}) {
    std::string back;
    EXPECT_EQ(Read(name, 0, 0, &back).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << name;
    v1::WriteBlobRequest request;
    request.mutable_blob()->set_sha256(name);
    request.mutable_blob()->set_size_bytes(1);
    request.set_data("x");
    request.set_finish(true);
    v1::WriteBlobResponse response;
    EXPECT_EQ(WriteOne(request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << name;
  }
  std::string back;
  EXPECT_EQ(Read(Sha256Hex("nobody sent this"), 0, 0, &back).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(BlobTest, ChunksAndListsAreLimited) {
  const std::string bytes = Bytes(limits::kBlobChunkBytes + 1);
  EXPECT_EQ(Upload(bytes, 0, bytes.size()).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::FindMissingRequest find;
  for (int i = 0; i <= limits::kMaxBlobsPerFindMissing; ++i) *find.add_blobs() = NameOf("x");
  v1::FindMissingResponse missing;
  EXPECT_EQ(Call(*stubs_->blobs, &v1::BlobService::Stub::FindMissing, find, &missing).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace longhaul::server
