#include "worker/trainer/local_job.h"

#include <utility>

#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/status_macros.h"
#include "kernels/exec.h"
#include "model/memory_plan.h"
#include "wire/device_probe.h"
#include "wire/job_spec.h"
#include "wire/train_shape_of_spec.h"
#include "worker/attempt/attempt_dir.h"
#include "worker/trainer/probe_devices.h"

namespace longhaul::trainer {
namespace {

absl::StatusOr<std::string> NameFile(const std::string& path, v1::Dataset* dataset) {
  LH_ASSIGN_OR_RETURN(*dataset->mutable_sha256(), Sha256HexOfFile(path));
  LH_ASSIGN_OR_RETURN(const int64_t size, FileSize(path));
  dataset->set_size_bytes(size);
  dataset->set_file_name(path.substr(path.rfind('/') + 1));
  return path;
}

DeviceFacts ThisCpu(const LocalJobOptions& options) {
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  DeviceFacts facts;
  facts.cpu_threads = HostCpuThreads();
  facts.device_class = "cpu-" + cpu.isa + "-" + std::to_string(facts.cpu_threads) + "t";
  facts.isa = cpu.isa;
  facts.has_bf16 = cpu.has_bf16;
  facts.host_bytes = options.host_bytes > 0 ? options.host_bytes : HostMemAvailableBytes();
  facts.disk_bytes = DiskFreeBytes(options.out_dir).value_or(0);
  return facts;
}

// The GPU that the options name, with what is free of it.
absl::StatusOr<DeviceFacts> ThisGpu(const LocalJobOptions& options, std::string* device_id) {
  const wire::DeviceProbe probe = ProbeDevices(/*measure=*/false);
  const auto unusable = [](const std::string& why) {
    return MakeError(absl::StatusCode::kUnavailable, "NO_CUDA_DEVICE", "--device: " + why);
  };
  for (const wire::ProbedGpu& gpu : probe.gpus) {
    if (options.device != "cuda" && options.device != gpu.id) continue;
    if (!gpu.problem.empty()) return unusable(gpu.problem);
    *device_id = gpu.id;
    const DeviceFacts cpu = ThisCpu(options);
    return wire::FactsOfGpu(gpu, gpu.memory_bytes - wire::GpuBytesOfOthers(gpu),
                            {cpu.host_bytes, cpu.disk_bytes, cpu.cpu_threads});
  }
  if (!probe.problem.empty()) return unusable(probe.problem);
  return unusable("there is no GPU \"" + options.device + "\"; `longhaul-train --devices list` names them");
}

std::string StorageOf(const formats::ModelSource& model) { return model.gguf() != nullptr ? "gguf" : "safetensors"; }

absl::StatusOr<v1::JobSpec> ReadSpec(const LocalJobOptions& options, InputPaths* paths) {
  v1::JobSpec spec = options.spec;
  paths->model = options.model.empty() ? spec.model() : options.model;
  if (paths->model.empty() || !FileExists(paths->model)) {
    return MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                     "no model at \"" + paths->model + "\"; --model names a .gguf file or a folder");
  }
  while (paths->model.size() > 1 && paths->model.back() == '/') paths->model.pop_back();
  spec.set_model(paths->model.substr(paths->model.rfind('/') + 1));
  const std::string dataset = options.dataset.empty() ? spec.dataset().file_name() : options.dataset;
  if (dataset.empty()) return InvalidField("spec.dataset.file_name", "is empty; --data names a file too");
  LH_ASSIGN_OR_RETURN(paths->dataset, NameFile(dataset, spec.mutable_dataset()));
  const std::string eval = options.eval_dataset.empty() ? spec.eval_dataset().file_name() : options.eval_dataset;
  if (!eval.empty()) {
    LH_ASSIGN_OR_RETURN(paths->eval_dataset, NameFile(eval, spec.mutable_eval_dataset()));
  }
  return spec;
}

absl::Status PrepareFolder(const std::string& out_dir) {
  LH_RETURN_IF_ERROR(CreateDirs(out_dir));
  LH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(out_dir));
  if (names.empty()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kAlreadyExists, "FOLDER_NOT_EMPTY",
                   out_dir + " is not empty; --out names a new folder, which then holds the run and its adapter");
}

}  // namespace

absl::StatusOr<LocalJob> PrepareLocalJob(const LocalJobOptions& options,
                                         const std::function<void(const std::string&)>& log) {
  LocalJob job;
  LH_RETURN_IF_ERROR(PrepareFolder(options.out_dir));
  LH_ASSIGN_OR_RETURN(v1::JobSpec spec, ReadSpec(options, &job.paths));
  {
    LH_ASSIGN_OR_RETURN(const Model model, OpenModel(job.paths.model));
    LH_RETURN_IF_ERROR(wire::ValidateJobSpec(spec, &model.source.shape()));
    wire::ResolveJobSpec(&spec, model.source.shape(), StorageOf(model.source));
    LH_ASSIGN_OR_RETURN(*job.spec.mutable_model_fingerprint(), model.source.Fingerprint());
    LH_ASSIGN_OR_RETURN(*job.spec.mutable_model_digest(), model.source.ComputeDigest());
  }
  LH_ASSIGN_OR_RETURN(const Inputs inputs, LoadInputs(spec, job.paths));
  LH_RETURN_IF_ERROR(CheckReport(inputs.report, spec));
  DeviceFacts facts = ThisCpu(options);
  if (options.device != "cpu") {
    LH_ASSIGN_OR_RETURN(facts, ThisGpu(options, job.spec.mutable_device_id()));
  }
  LH_ASSIGN_OR_RETURN(const TrainShape shape, wire::TrainShapeOfSpec(spec, &inputs.report, facts));
  LH_ASSIGN_OR_RETURN(const MemoryPlan plan, MakePlan(inputs.model.shape(), shape, facts, PlanBudget()));
  log(FormatCount(inputs.report.examples()) + " examples, " + FormatCount(inputs.report.tokens()) +
      " tokens; plan: " + FormatBytes(plan.host_bytes_total) +
      (plan.device_bytes_total > 0 ? " and " + FormatBytes(plan.device_bytes_total) + " of the GPU" : "") + ", " +
      DescribeChoices(plan));
  job.spec.set_job_id("local");
  job.spec.set_attempt(1);
  job.spec.set_kind(v1::ATTEMPT_KIND_TRAIN);
  *job.spec.mutable_spec() = std::move(spec);
  job.spec.set_model_path(job.paths.model);
  job.spec.set_model_name(job.spec.spec().model());
  job.spec.set_memory_plan_json(MemoryPlanToJson(plan));
  *job.spec.mutable_data_report() = inputs.report;
  const attempt::AttemptDir dir(options.out_dir);
  LH_RETURN_IF_ERROR(dir.Create());
  LH_RETURN_IF_ERROR(dir.WriteSpec(job.spec));
  return job;
}

}  // namespace longhaul::trainer
