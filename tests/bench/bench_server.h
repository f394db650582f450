// A scheduler in this process for the benchmarks of the control plane, with clients on connections of their own.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "tests/server/http/http_client.h"
#include "tests/server/rpc/rpc_test_support.h"

namespace longhaul::server {

// One connection that nobody shares.
inline std::shared_ptr<grpc::Channel> OwnChannel(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto channel =
      grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments);
  // gRPC 1.51 looks at errno some calls after its connect(): a new thread's first malloc in between, which reads /sys,
  // makes a failure of it, of a call that does not wait. The channel itself tries again.
  LH_CHECK(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(20)));
  return channel;
}

struct BenchServer {
  explicit BenchServer(int64_t lease_ms = 600'000) {
    ServerOptions options;
    options.state_dir = dir.path();
    options.listen = "127.0.0.1:0";
    options.http_listen = "127.0.0.1:0";
    options.lease_ms = lease_ms;
    options.worker_lost_ms = 2 * lease_ms;
    auto started = Server::Start(options, &clock);
    LH_CHECK(started.ok(), std::string(started.status().message()));
    server = *std::move(started);
    stubs = std::make_unique<Stubs>(server->grpc_port());
  }

  // Of the page /metrics; 0 where the name is not there.
  double Metric(const std::string& name) const {
    const std::string page = Fetch(server->http_port(), "/metrics").body;
    const size_t at = page.find("\n" + name + " ");
    return at == std::string::npos ? 0 : std::stod(page.substr(at + name.size() + 2));
  }

  void Upload(const std::string& bytes) { UploadTo(stubs->blobs.get(), bytes); }
  static void UploadTo(v1::BlobService::Stub* blobs, const std::string& bytes) {
    grpc::ClientContext context;
    v1::WriteBlobResponse response;
    const auto writer = blobs->Write(&context, &response);
    v1::WriteBlobRequest request;
    request.mutable_blob()->set_sha256(Sha256Hex(bytes));
    request.mutable_blob()->set_size_bytes(static_cast<int64_t>(bytes.size()));
    request.set_data(bytes);
    request.set_finish(true);
    writer->Write(request);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    LH_CHECK(status.ok(), status.error_message());
  }

  // REQUIRES: its dataset is uploaded.
  static v1::CreateFineTuneJobRequest Request() {
    v1::CreateFineTuneJobRequest request;
    v1::JobSpec* spec = request.mutable_spec();
    spec->set_model("tiny-llama");
    spec->mutable_dataset()->set_sha256(Sha256Hex(Dataset()));
    spec->mutable_dataset()->set_size_bytes(static_cast<int64_t>(Dataset().size()));
    spec->mutable_dataset()->set_file_name("train.jsonl");
    spec->mutable_hyperparameters()->set_max_sequence_length(128);
    spec->mutable_hyperparameters()->set_max_steps(4);
    return request;
  }
  static std::string Dataset() { return "{\"text\":\"hello\"}\n"; }

  RealClock clock;
  TempDir dir;
  std::unique_ptr<Server> server;
  std::unique_ptr<Stubs> stubs;
};

// values[p * size], of a sorted copy.
inline double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(p * static_cast<double>(values.size())))];
}

}  // namespace longhaul::server
