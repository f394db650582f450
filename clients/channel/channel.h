// How a client reaches the scheduler: where it is, TLS, who asks. The command line and the worker share it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace longhaul::channel {

struct ChannelOptions {
  std::string address = "";           // HOST:PORT
  bool tls = false;                   // also with any of the files below
  std::string ca_file = "";           // PEM, who signs the scheduler's certificate; "" = the system's authorities
  std::string certificate_file = "";  // PEM, ours; with key_file
  std::string key_file = "";
  std::string server_name = "";  // what the scheduler's certificate is for, where that is not the address
  std::string token = "";
  std::string token_file = "";  // instead of `token`; read at each call, so that it may be replaced at any time

  bool uses_tls() const { return tls || !ca_file.empty() || !certificate_file.empty() || !key_file.empty(); }
};

// LONGHAUL_TLS_CA, LONGHAUL_TLS_CERT, LONGHAUL_TLS_KEY, LONGHAUL_TOKEN, LONGHAUL_TOKEN_FILE.
void ReadEnvironment(const std::function<const char*(const char*)>& getenv, ChannelOptions* options);

// Connects lazily, and again after a tenth of a second, later ten, where `arguments` say no other times of
// reconnecting. Every call carries the token. INVALID_ARGUMENT names the option; FAILED_PRECONDITION TOKEN_NEEDS_TLS
// where a token would go to another machine in plaintext; errors of files as base/env.h.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ChannelOptions& options,
                                                           grpc::ChannelArguments arguments);

// Changes with the contents of the TLS files: a channel that was opened before goes on with the old ones.
// "" where there are none, or they cannot be read just now.
std::string TlsFilesDigest(const ChannelOptions& options);

// Why no connection came about, in words for people, by gRPC's own; `advice` is "" where it is not known.
// `address_flag` is what names the scheduler's address: "--server HOST:PORT".
struct NoConnection {
  std::string what;
  std::string advice;
};
NoConnection ExplainNoConnection(const std::string& address_flag, const std::string& words);

// gRPC logs what it also returns; a program tells it once, in its own words. GRPC_VERBOSITY brings its lines back.
void SilenceGrpcLog();

}  // namespace longhaul::channel
