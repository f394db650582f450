#include <set>

#include "google/protobuf/descriptor.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "server/rpc/reflection_service.h"
#include "tests/server/rpc/secure_test_support.h"

namespace longhaul::server {
namespace {

using grpc::reflection::v1alpha::ServerReflection;
using grpc::reflection::v1alpha::ServerReflectionRequest;
using grpc::reflection::v1alpha::ServerReflectionResponse;

std::vector<std::string> FilesOf(const ServerReflectionResponse& response) {
  std::vector<std::string> names;
  for (const std::string& bytes : response.file_descriptor_response().file_descriptor_proto()) {
    google::protobuf::FileDescriptorProto file;
    EXPECT_TRUE(file.ParseFromString(bytes));
    // A client builds them in this order: what a file imports must be there before it.
    for (const std::string& import : file.dependency()) {
      EXPECT_NE(std::find(names.begin(), names.end(), import), names.end()) << file.name() << " needs " << import;
    }
    names.push_back(file.name());
  }
  return names;
}

TEST(ReflectTest, GivesFilesWithAllThatTheyImport) {
  ServerReflectionRequest request;
  request.set_file_containing_symbol("longhaul.v1.FineTuneService");
  const std::vector<std::string> by_symbol = FilesOf(Reflect({}, request));
  ASSERT_FALSE(by_symbol.empty());
  EXPECT_EQ(by_symbol.back(), "longhaul/v1/fine_tune_service.proto");
  EXPECT_NE(std::find(by_symbol.begin(), by_symbol.end(), "google/protobuf/timestamp.proto"), by_symbol.end());
  EXPECT_EQ(std::set<std::string>(by_symbol.begin(), by_symbol.end()).size(), by_symbol.size()) << "each once";
  request.set_file_by_filename("longhaul/v1/job.proto");
  EXPECT_EQ(FilesOf(Reflect({}, request)).back(), "longhaul/v1/job.proto");
}

TEST(ReflectTest, AnswersNonsenseWithAnError) {
  const auto code = [](const ServerReflectionRequest& request) {
    return Reflect({}, request).error_response().error_code();
  };
  ServerReflectionRequest request;
  EXPECT_EQ(code(request), static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  for (const char* name : {"", "no.such.Thing", "../../etc/passwd", "longhaul.v1."}) {
    request.set_file_containing_symbol(name);
    EXPECT_EQ(code(request), static_cast<int>(grpc::StatusCode::NOT_FOUND)) << name;
    request.set_file_by_filename(name);
    EXPECT_EQ(code(request), static_cast<int>(grpc::StatusCode::NOT_FOUND)) << name;
    request.set_all_extension_numbers_of_type(name);
    EXPECT_EQ(code(request), static_cast<int>(grpc::StatusCode::NOT_FOUND)) << name;
  }
  request.set_all_extension_numbers_of_type("longhaul.v1.Job");
  EXPECT_EQ(Reflect({}, request).all_extension_numbers_response().base_type_name(), "longhaul.v1.Job");
  request.mutable_file_containing_extension()->set_containing_type("longhaul.v1.Job");
  EXPECT_EQ(code(request), static_cast<int>(grpc::StatusCode::NOT_FOUND));
}

class ReflectionTest : public SecureRpcTest {};

TEST_F(ReflectionTest, ListsEveryServiceToWhoMayAsk) {
  const auto list = [&](const Stubs& stubs, std::set<std::string>* names) {
    const auto reflection = ServerReflection::NewStub(stubs.channel);
    grpc::ClientContext context;
    const auto stream = reflection->ServerReflectionInfo(&context);
    ServerReflectionRequest request;
    request.set_list_services("*");
    ServerReflectionResponse response;
    for (int i = 0; i < 2 && stream->Write(request) && stream->Read(&response); ++i) {
      for (const auto& service : response.list_services_response().service()) names->insert(service.name());
    }
    stream->WritesDone();
    return stream->Finish();
  };
  std::set<std::string> names;
  ASSERT_TRUE(list(As(MakeTokenOf("v", "viewer", "red")), &names).ok());
  EXPECT_EQ(names, (std::set<std::string>{"longhaul.v1.FineTuneService", "longhaul.v1.BlobService",
                                          "longhaul.v1.WorkerService", "longhaul.v1.WorkerAdminService",
                                          "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}));
  names.clear();
  EXPECT_EQ(list(With(ClientOptions()), &names).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(names.empty());
}

}  // namespace
}  // namespace longhaul::server
