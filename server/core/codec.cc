#include "server/core/codec.h"

#include "base/error.h"
#include "server/core/record.h"

namespace longhaul::server {

RecordReader::RecordReader(std::string_view bytes) {
  size_t at = 0;
  const auto varint = [&](uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at >= bytes.size()) return false;
      const uint8_t byte = static_cast<uint8_t>(bytes[at++]);
      *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  };
  while (at < bytes.size()) {
    uint64_t tag = 0;
    Field field;
    ok_ = varint(&tag) && tag >> 3 > 0 && tag >> 3 < (1 << 20);
    field.type = static_cast<int>(tag & 7);
    if (ok_ && field.type == 0) {
      ok_ = varint(&field.number);
    } else if (ok_ && field.type == 1) {
      ok_ = bytes.size() - at >= 8;
      for (int i = 0; ok_ && i < 8; ++i) {
        field.number |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[at++])) << (8 * i);
      }
    } else if (ok_ && field.type == 2) {
      uint64_t size = 0;
      ok_ = varint(&size) && size <= bytes.size() - at;
      if (ok_) {
        field.bytes = bytes.substr(at, size);
        at += size;
      }
    } else {
      ok_ = false;
    }
    if (!ok_) return;
    fields_[static_cast<int>(tag >> 3)].push_back(field);
  }
}

const RecordReader::Field* RecordReader::Last(int number, int type) {
  const auto found = fields_.find(number);
  if (found == fields_.end()) return nullptr;
  const Field& field = found->second.back();
  if (field.type != type) {
    ok_ = false;
    return nullptr;
  }
  return &field;
}

// Field numbers are for ever: a number that is out of use is never given again.
// A struct that grows changes its size; the assertions below remind of this file.

template <class A>
void Fields(A& a, RopeFacts& v) {
  a(1, v.theta);
  a(2, v.scaling);
  a(3, v.factor);
  a(4, v.low_freq_factor);
  a(5, v.high_freq_factor);
  a(6, v.original_max_position_embeddings);
  a(7, v.beta_fast);
  a(8, v.beta_slow);
  a(9, v.attention_factor);
  a(10, v.truncate);
  a(11, v.short_factor);
  a(12, v.long_factor);
}
static_assert(sizeof(RopeFacts) == 80 + 2 * sizeof(std::vector<double>));

template <class A>
void Fields(A& a, ModelShape& v) {
  a(1, v.family);
  a(2, v.layers);
  a(3, v.hidden);
  a(4, v.intermediate);
  a(5, v.heads);
  a(6, v.kv_heads);
  a(7, v.head_dim);
  a(8, v.vocab);
  a(9, v.max_position_embeddings);
  a(10, v.rms_norm_eps);
  a(11, v.tied_embeddings);
  a(12, v.qk_norm);
  a(13, v.rope);
}
static_assert(sizeof(ModelShape) == sizeof(std::string) + 9 * 8 + 8 + sizeof(RopeFacts));

template <class A>
void Fields(A& a, TrainShape& v) {
  a(1, v.compute);
  a(2, v.base);
  a(3, v.lora_rank);
  a(4, v.lora_targets);
  a(5, v.lora_dropout);
  a(6, v.batch_size);
  a(7, v.sequence_length);
  a(8, v.longest_document);
  a(9, v.accumulation_steps);
  a(10, v.dataset_tokens);
  a(11, v.dataset_bytes);
  a(12, v.cpu_threads);
  a(13, v.deterministic);
}
static_assert(sizeof(TrainShape) == 80);

template <class A>
void Fields(A& a, DeviceFacts& v) {
  a(1, v.device_class);
  a(2, v.kind);
  a(3, v.device_bytes);
  a(4, v.host_bytes);
  a(5, v.disk_bytes);
  a(6, v.cpu_threads);
  a(7, v.isa);
  a(8, v.has_bf16);
  a(9, v.context_bytes);
  a(10, v.gemm_flops);
  a(11, v.copy_bytes_per_second);
  a(12, v.compute_capability);
  a(13, v.runtime_host_bytes);
  a(14, v.cudnn_version);
  a(15, v.has_fp8);
  a(16, v.memory_bytes_per_second);
}

template <class A>
void Fields(A& a, BlobRef& v) {
  a(1, v.sha256);
  a(2, v.size_bytes);
}

template <class A>
void Fields(A& a, NamedBlob& v) {
  a(1, v.path);
  a(2, v.blob);
}

template <class A>
void Fields(A& a, Failure& v) {
  a(1, v.reason);
  a(2, v.message);
  a(3, v.user_can_fix);
  a(4, v.log_tail);
}

template <class A>
void Fields(A& a, Attempt& v) {
  a(1, v.number);
  a(2, v.kind);
  a(3, v.worker_id);
  a(4, v.device_id);
  a(5, v.lease_epoch);
  a(6, v.start_wall_micros);
  a(7, v.end_wall_micros);
  a(8, v.outcome);
  a(9, v.reason);
  a(10, v.message);
  a(11, v.resumed_from_step);
  a(12, v.device_bytes_planned);
  a(13, v.host_bytes_planned);
  a(14, v.disk_bytes_planned);
  a(15, v.cpu_threads_planned);
  a(16, v.device_bytes_peak);
  a(17, v.host_bytes_peak);
  a(18, v.device_class);
  a(19, v.plan_point);
  a(20, v.last_step);
}

template <class A>
void Fields(A& a, Checkpoint& v) {
  a(1, v.step);
  a(2, v.attempt);
  a(3, v.final);
  a(4, v.eval_loss);
  a(5, v.plan_signature);
  a(6, v.files);
  a(7, v.commit_wall_micros);
  a(8, v.made_with);
}

template <class A>
void Fields(A& a, Job& v) {
  a(1, v.id);
  a(2, v.project);
  a(3, v.suffix);
  a(4, v.request_id);
  a(5, v.labels);
  a(6, v.metadata);
  a(7, v.spec);
  a(8, v.resolved_spec);
  a(9, v.model);
  a(10, v.model_digest);
  a(11, v.model_shape);
  a(12, v.inputs);
  a(13, v.priority);
  a(14, v.device_share);
  a(15, v.device_share_bytes);
  a(16, v.retry_limit);
  a(17, v.backoff_seconds);
  a(18, v.create_wall_micros);
  a(19, v.deadline_wall_micros);
  a(20, v.create_number);
  a(21, v.train_shape);
  a(22, v.total_steps);
  a(23, v.state);
  a(24, v.reason);
  a(25, v.reason_detail);
  a(26, v.pause_cause);
  a(27, v.failure);
  a(28, v.validated);
  a(29, v.lease_epoch);
  a(30, v.attempts);
  a(31, v.failed_attempts);
  a(32, v.not_before_wall_micros);
  a(33, v.start_wall_micros);
  a(34, v.end_wall_micros);
  a(35, v.sequence);
  a(36, v.attempt);
  a(37, v.last_checkpoint);
  a(38, v.progress);
  a(39, v.data_report);
  a(40, v.result);
  a(41, v.artifact);
  a(42, v.artifact_wall_micros);
  a(43, v.pinned_device_class);
  a(44, v.pinned_point);
  a(45, v.trained_tokens);
  a(46, v.allow_nonidentical_resume);
  a(47, v.preemptions);
  a(48, v.compute_of_device);
}

template <class A>
void Fields(A& a, JobEvent& v) {
  a(1, v.sequence);
  a(2, v.wall_micros);
  a(3, v.type);
  a(4, v.from_state);
  a(5, v.state);
  a(6, v.reason);
  a(7, v.message);
  a(8, v.attempt);
  a(9, v.step);
}

template <class A>
void Fields(A& a, MetricPoint& v) {
  a(1, v.attempt);
  a(2, v.step);
  a(3, v.progress);
}

template <class A>
void Fields(A& a, ModelEntry& v) {
  a(1, v.name);
  a(2, v.digest);
  a(3, v.shape);
  a(4, v.tokenizer_digest);
  a(5, v.size_bytes);
  a(6, v.storage);
  a(7, v.has_chat_template);
}

template <class A>
void Fields(A& a, DeviceEntry& v) {
  a(1, v.id);
  a(2, v.facts);
}

template <class A>
void Fields(A& a, Worker& v) {
  a(1, v.id);
  a(2, v.host_name);
  a(3, v.build);
  a(4, v.plan_version);
  a(5, v.devices);
  a(6, v.models);
  a(7, v.host_bytes_total);
  a(8, v.disk_bytes_total);
  a(9, v.cpu_threads_total);
  a(10, v.draining);
  a(11, v.owner);
  a(12, v.seen_wall_micros);
}

namespace {

template <class T>
std::string Encode(const T& value) {
  RecordWriter writer;
  Fields(writer, const_cast<T&>(value));  // Fields only reads through a writer
  return writer.Take();
}

template <class T>
absl::StatusOr<T> Decode(const char* what, std::string_view bytes) {
  RecordReader reader(bytes);
  T value;
  Fields(reader, value);
  if (!reader.ok()) {
    return MakeError(absl::StatusCode::kDataLoss, "CORRUPT_RECORD",
                     std::string("a stored ") + what + " of " + std::to_string(bytes.size()) + " bytes cannot be read");
  }
  return value;
}

struct Metrics {
  std::vector<MetricPoint> points;
};
template <class A>
void Fields(A& a, Metrics& v) {
  a(1, v.points);
}

struct Shapes {
  ModelShape model;
  TrainShape train;
};
template <class A>
void Fields(A& a, Shapes& v) {
  a(1, v.model);
  a(2, v.train);
}

}  // namespace

std::string EncodeJob(const Job& job) { return Encode(job); }
absl::StatusOr<Job> DecodeJob(std::string_view bytes) {
  absl::StatusOr<Job> job = Decode<Job>("job", bytes);
  if (job.ok() && (static_cast<int>(job->state) < 1 || static_cast<int>(job->state) > kJobStates)) {
    return MakeError(absl::StatusCode::kDataLoss, "CORRUPT_RECORD",
                     "a stored job has state " + std::to_string(static_cast<int>(job->state)));
  }
  return job;
}
std::string EncodeAttempt(const Attempt& attempt) { return Encode(attempt); }
absl::StatusOr<Attempt> DecodeAttempt(std::string_view bytes) { return Decode<Attempt>("attempt", bytes); }
std::string EncodeCheckpoint(const Checkpoint& checkpoint) { return Encode(checkpoint); }
absl::StatusOr<Checkpoint> DecodeCheckpoint(std::string_view bytes) { return Decode<Checkpoint>("checkpoint", bytes); }
std::string EncodeEvent(const JobEvent& event) { return Encode(event); }
absl::StatusOr<JobEvent> DecodeEvent(std::string_view bytes) { return Decode<JobEvent>("event", bytes); }
std::string EncodeWorker(const Worker& worker) { return Encode(worker); }
absl::StatusOr<Worker> DecodeWorker(std::string_view bytes) { return Decode<Worker>("worker", bytes); }
std::string EncodeMetrics(const std::vector<MetricPoint>& points) { return Encode(Metrics{points}); }
absl::StatusOr<std::vector<MetricPoint>> DecodeMetrics(std::string_view bytes) {
  absl::StatusOr<Metrics> metrics = Decode<Metrics>("chunk of metrics", bytes);
  if (!metrics.ok()) return metrics.status();
  return std::move(metrics->points);
}

std::string EncodeShapes(const ModelShape& model, const TrainShape& train) { return Encode(Shapes{model, train}); }
std::string EncodeFacts(const DeviceFacts& facts) { return Encode(facts); }

}  // namespace longhaul::server
