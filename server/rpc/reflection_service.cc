#include "server/rpc/reflection_service.h"

#include <set>
#include <utility>

#include "base/status_macros.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "server/rpc/stream_reactor.h"

namespace longhaul::server {
namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;
using grpc::reflection::v1alpha::ServerReflection;
using grpc::reflection::v1alpha::ServerReflectionRequest;
using grpc::reflection::v1alpha::ServerReflectionResponse;

constexpr Method kMethod("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");

// Imports first, each once.
void AddFile(const FileDescriptor& file, std::set<const FileDescriptor*>* done, ServerReflectionResponse* response) {
  if (!done->insert(&file).second) return;
  for (int i = 0; i < file.dependency_count(); ++i) AddFile(*file.dependency(i), done, response);
  google::protobuf::FileDescriptorProto proto;
  file.CopyTo(&proto);
  response->mutable_file_descriptor_response()->add_file_descriptor_proto(proto.SerializeAsString());
}

void PutFile(const FileDescriptor* file, const std::string& asked, ServerReflectionResponse* response) {
  if (file == nullptr) {
    response->mutable_error_response()->set_error_code(grpc::StatusCode::NOT_FOUND);
    response->mutable_error_response()->set_error_message("there is no " + asked);
    return;
  }
  std::set<const FileDescriptor*> done;
  AddFile(*file, &done, response);
}

class ReflectionReactor final : public grpc::ServerBidiReactor<ServerReflectionRequest, ServerReflectionResponse> {
 public:
  ReflectionReactor(const Gate* gate, const std::vector<std::string>* services, const grpc::ServerContextBase& call)
      : gate_(gate), services_(services) {
    if (absl::Status status = Begin(call); !status.ok()) {
      End(status);
    } else {
      StartRead(&request_);
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    // Each question is a call: a stream is no way around a caller's rate, nor around a token's end.
    if (absl::Status status = gate_->Recheck(caller_); !status.ok()) return End(status);
    if (absl::Status status = gate_->limits()->TakeCall(caller_); !status.ok()) return End(status);
    response_ = Reflect(*services_, request_);
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the client went away"));
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Begin(const grpc::ServerContextBase& call) {
    LH_ASSIGN_OR_RETURN(StreamCaller admitted, AdmitStream(*gate_, call, kMethod));
    caller_ = std::move(admitted.caller);
    slot_ = std::move(admitted.slot);
    return absl::OkStatus();
  }
  void End(const absl::Status& status) { Finish(gate_->End(kMethod, status)); }

  const Gate* gate_;
  const std::vector<std::string>* services_;
  Caller caller_;
  CallLimits::Slot slot_;
  ServerReflectionRequest request_;
  ServerReflectionResponse response_;
};

class ReflectionService final : public ServerReflection::CallbackService {
 public:
  ReflectionService(const RpcContext* context, std::vector<std::string> services)
      : context_(*context), services_(std::move(services)) {}

  grpc::ServerBidiReactor<ServerReflectionRequest, ServerReflectionResponse>* ServerReflectionInfo(
      grpc::CallbackServerContext* call) override {
    return new ReflectionReactor(&context_.gate, &services_, *call);
  }

 private:
  const RpcContext& context_;
  const std::vector<std::string> services_;
};

}  // namespace

ServerReflectionResponse Reflect(const std::vector<std::string>& services, const ServerReflectionRequest& request) {
  ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  const DescriptorPool& pool = *DescriptorPool::generated_pool();
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kListServices:
      for (const std::string& name : services) response.mutable_list_services_response()->add_service()->set_name(name);
      break;
    case ServerReflectionRequest::kFileByFilename:
      PutFile(pool.FindFileByName(request.file_by_filename()), "file " + request.file_by_filename(), &response);
      break;
    case ServerReflectionRequest::kFileContainingSymbol:
      PutFile(pool.FindFileContainingSymbol(request.file_containing_symbol()),
              "symbol " + request.file_containing_symbol(), &response);
      break;
    case ServerReflectionRequest::kFileContainingExtension:
      PutFile(nullptr, "extension; no message here has any", &response);
      break;
    case ServerReflectionRequest::kAllExtensionNumbersOfType: {
      const std::string& type = request.all_extension_numbers_of_type();
      if (pool.FindMessageTypeByName(type) == nullptr) {
        PutFile(nullptr, "message " + type, &response);
      } else {
        response.mutable_all_extension_numbers_response()->set_base_type_name(type);
      }
      break;
    }
    case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      response.mutable_error_response()->set_error_code(grpc::StatusCode::INVALID_ARGUMENT);
      response.mutable_error_response()->set_error_message("the request asks nothing");
      break;
  }
  return response;
}

std::unique_ptr<grpc::Service> MakeReflectionService(const RpcContext* context, std::vector<std::string> services) {
  return std::make_unique<ReflectionService>(context, std::move(services));
}

}  // namespace longhaul::server
