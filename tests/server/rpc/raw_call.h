// One call of any method by its name, with bytes instead of a message: what a test says that knows no protos, or wants
// to send what is none.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"

namespace longhaul::server {

struct RawAnswer {
  grpc::Status status;
  bool answered = false;  // a message came; the call was then cancelled, because some streams have no end
};

// `method`: "/longhaul.v1.FineTuneService/GetFineTuneJob". `kind` of the method does not matter: a unary call is a
// stream of one message each way.
inline RawAnswer CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                         const std::string& bytes = "") {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  RawAnswer answer;
  call->StartCall(nullptr);
  if (next()) {
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    call->WriteLast(request, grpc::WriteOptions(), nullptr);
    next();
    grpc::ByteBuffer response;
    call->Read(&response, nullptr);
    answer.answered = next();
    if (answer.answered) context.TryCancel();
  }
  call->Finish(&answer.status, nullptr);
  next();
  queue.Shutdown();
  return answer;
}

}  // namespace longhaul::server
