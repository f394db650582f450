// workers, drain, undrain.
#include <memory>
#include <ostream>

#include "base/format.h"
#include "base/status_macros.h"
#include "clients/cli/commands.h"
#include "wire/enum_names.h"

namespace longhaul::cli {
namespace {

using Stub = v1::WorkerAdminService::Stub;

std::string StateText(const v1::Worker& worker) {
  std::string text = v1::WorkerState_Name(worker.state());
  if (text.rfind("WORKER_", 0) == 0) text = text.substr(7);
  if (worker.leaving()) return text + " (shutting down)";
  return worker.draining() ? text + " (draining)" : text;
}

void PrintDevicesAndModels(const v1::ListWorkersResponse& response, std::ostream& out) {
  Table devices({"WORKER", "DEVICE", "CLASS", "VRAM", "RAM", "THREADS", "GEMM GFLOP/S"});
  Table models({"WORKER", "MODEL", "STORED AS", "SIZE", "WINDOW", "CHAT TEMPLATE", "DIGEST"});
  for (const v1::Worker& worker : response.workers()) {
    for (const v1::Device& device : worker.inventory().devices()) {
      const v1::DeviceFacts& facts = device.facts();
      devices.Add({worker.id(), device.id(), facts.device_class(),
                   facts.device_bytes() > 0 ? FormatBytes(facts.device_bytes()) : "-", FormatBytes(facts.host_bytes()),
                   std::to_string(facts.cpu_threads()), FormatCount(static_cast<int64_t>(facts.gemm_flops() / 1e9))});
    }
    for (const v1::Model& model : worker.inventory().models()) {
      models.Add({worker.id(), model.name(), model.storage(), FormatBytes(model.size_bytes()),
                  FormatCount(model.shape().max_position_embeddings()), model.has_chat_template() ? "yes" : "no",
                  model.digest().substr(0, 12)});
    }
  }
  out << "\n";
  devices.Print(out);
  out << "\n";
  models.Print(out);
}

void PrintRests(const v1::ListWorkersResponse& response, const CliEnv& env) {
  for (const v1::Worker& worker : response.workers()) {
    for (const v1::DeviceRest& rest : worker.device_rests()) {
      *env.out << "device " << rest.device_id() << " of worker " << worker.id() << " rests after " << rest.faults()
               << " faults, until " << Expected(rest.until_time(), *env.clock) << "; `longhaul undrain " << worker.id()
               << "` ends it\n";
    }
  }
}

absl::StatusOr<ExitCode> Workers(Context& context) {
  Client& client = context.client();
  LH_ASSIGN_OR_RETURN(const v1::ListWorkersResponse response,
                      client.CallAllPages(client.workers(), &Stub::ListWorkers, v1::ListWorkersRequest()));
  std::ostream& out = *context.env.out;
  if (context.structured()) {
    PrintMessage(response, context.output, out);
    return kOk;
  }
  if (context.output == OutputFormat::kName) {
    for (const v1::Worker& worker : response.workers()) out << worker.id() << "\n";
    return kOk;
  }
  Table table(
      {"WORKER", "STATE", "HOST", "DEVICES", "MODELS", "JOBS", "RAM RESERVED", "RAM", "THREADS RESERVED", "SEEN"});
  for (const v1::Worker& worker : response.workers()) {
    const v1::WorkerInventory& inventory = worker.inventory();
    table.Add({worker.id(), StateText(worker), inventory.host_name(), std::to_string(inventory.devices_size()),
               std::to_string(inventory.models_size()), std::to_string(worker.attempts_size()),
               FormatBytes(worker.host_bytes_reserved()), FormatBytes(inventory.host_bytes_total()),
               std::to_string(worker.cpu_threads_reserved()) + " of " + std::to_string(inventory.cpu_threads_total()),
               Ago(worker.last_sync_time(), *context.env.clock)});
  }
  table.Print(out);
  PrintRests(response, context.env);
  if (context.output == OutputFormat::kWide) PrintDevicesAndModels(response, out);
  if (response.workers().empty()) {
    *context.env.err << "no worker has registered; start one: longhaul-worker --scheduler " << client.address()
                     << " --state-dir DIR --models DIR\n";
  }
  return kOk;
}

template <class Request>
void AddDrain(CLI::App& app, Context& context, const std::string& name, const std::string& help,
              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, v1::Worker*)) {
  CLI::App* command = app.add_subcommand(name, help);
  const auto id = std::make_shared<std::string>();
  command->add_option("worker", *id, "id, or its beginning")->required();
  command->callback([&context, id, method] {
    context.action = [&context, id, method]() -> absl::StatusOr<ExitCode> {
      Client& client = context.client();
      LH_ASSIGN_OR_RETURN(const v1::Worker found, client.FindWorker(*id));
      Request request;
      request.set_id(found.id());
      LH_ASSIGN_OR_RETURN(const v1::Worker worker, client.Call(client.workers(), method, request));
      if (context.structured()) {
        PrintMessage(worker, context.output, *context.env.out);
      } else {
        *context.env.out << worker.id() << (context.output == OutputFormat::kName ? "" : " " + StateText(worker))
                         << "\n";
      }
      return kOk;
    };
  });
}

}  // namespace

void AddWorkerCommands(CLI::App& app, Context& context) {
  CLI::App* workers = app.add_subcommand("workers", "Workers; -o wide adds their devices and models");
  workers->callback([&context] { context.action = [&context] { return Workers(context); }; });
  AddDrain(app, context, "drain", "Give a worker no new attempts; running ones checkpoint and move",
           &Stub::DrainWorker);
  AddDrain(app, context, "undrain", "Let a worker take attempts again", &Stub::UndrainWorker);
}

}  // namespace longhaul::cli
