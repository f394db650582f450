#include "server/core/codec.h"

#include "base/error.h"
#include "base/random.h"
#include "gtest/gtest.h"

namespace longhaul::server {
namespace {

Job FullJob() {
  Job job;
  job.id = "ftjob-1";
  job.project = "p";
  job.suffix = "s";
  job.request_id = "r";
  job.labels = {{"a", "1"}, {"b", ""}};
  job.metadata = {{"note", std::string("\0\xff", 2)}};
  job.spec = std::string(300, 'x');
  job.resolved_spec = "y";
  job.model = "m";
  job.model_digest = "d";
  job.model_shape.family = "qwen3";
  job.model_shape.layers = 28;
  job.model_shape.rms_norm_eps = 1e-6;
  job.model_shape.qk_norm = true;
  job.model_shape.rope.theta = 1e6;
  job.model_shape.rope.scaling = RopeScaling::kLlama3;
  job.inputs = {{"aa", 7}, {"bb", 8}};
  job.priority = PriorityClass::kHigh;
  job.device_share = DeviceShare::kBytes;
  job.device_share_bytes = int64_t{3} << 40;
  job.retry_limit = 0;
  job.backoff_seconds = 0;
  job.create_wall_micros = 1;
  job.deadline_wall_micros = -1;
  job.create_number = 99;
  job.train_shape.compute = ComputeType::kBF16;
  job.train_shape.lora_targets = 5;
  job.train_shape.lora_dropout = true;
  job.model_shape.rope.short_factor = {1.5, 2.25};
  job.model_shape.rope.long_factor = {4, 0.125, 8};
  job.train_shape.deterministic = true;
  job.train_shape.longest_document = 77;
  job.train_shape.cpu_threads = 3;
  job.total_steps = 60;
  job.state = JobState::kFinalizing;
  job.reason = Reason::kBackoff;
  job.reason_detail = "detail";
  job.pause_cause = PauseCause::kDrain;
  job.failure = {Reason::kHostOom, "m", true, "tail"};
  job.validated = true;
  job.lease_epoch = 5;
  job.attempts = 4;
  job.failed_attempts = 2;
  job.attempt.number = 4;
  job.attempt.kind = AttemptKind::kTrain;
  job.attempt.device_class = "cpu";
  job.attempt.plan_point = PlanPoint::kBalanced;
  job.attempt.cpu_threads_planned = 2;
  job.last_checkpoint = Checkpoint{20, 3, true, 1.25, "sig", {{"a.bin", {"cc", 9}}}, 11, "3 threads"};
  job.progress = "p";
  job.artifact = {{"adapter", {"dd", 10}}};
  job.pinned_device_class = "cpu";
  job.pinned_point = PlanPoint::kWhole;
  job.allow_nonidentical_resume = true;
  job.trained_tokens = 4321;
  job.attempt.last_step = 21;
  return job;
}

TEST(CodecTest, AJobComesBackWhole) {
  const Job job = FullJob();
  const std::string bytes = EncodeJob(job);
  const absl::StatusOr<Job> back = DecodeJob(bytes);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(EncodeJob(*back), bytes);
  EXPECT_EQ(back->labels, job.labels);
  EXPECT_EQ(back->metadata, job.metadata);
  EXPECT_EQ(back->retry_limit, 0);  // 0 is a value, not an absence
  EXPECT_EQ(back->deadline_wall_micros, -1);
  EXPECT_EQ(back->model_shape.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(back->model_shape.rope.short_factor, std::vector<double>({1.5, 2.25}));
  EXPECT_EQ(back->model_shape.rope.long_factor, std::vector<double>({4, 0.125, 8}));
  EXPECT_EQ(back->train_shape.compute, ComputeType::kBF16);
  EXPECT_EQ(back->train_shape.cpu_threads, 3);
  EXPECT_TRUE(back->train_shape.deterministic);
  EXPECT_TRUE(back->allow_nonidentical_resume);
  EXPECT_EQ(back->trained_tokens, 4321);
  EXPECT_EQ(back->attempt.last_step, 21);
  ASSERT_TRUE(back->last_checkpoint.has_value());
  EXPECT_EQ(back->last_checkpoint->eval_loss, 1.25);
  EXPECT_EQ(back->last_checkpoint->made_with, "3 threads");
  EXPECT_EQ(back->last_checkpoint->files.at(0).blob.sha256, "cc");
  EXPECT_EQ(back->attempt.plan_point, PlanPoint::kBalanced);
  EXPECT_EQ(back->inputs.at(1).size_bytes, 8);
}

TEST(CodecTest, AbsentOptionalsStayAbsent) {
  Job job;
  job.id = "x";
  const absl::StatusOr<Job> back = DecodeJob(EncodeJob(job));
  ASSERT_TRUE(back.ok());
  EXPECT_FALSE(back->last_checkpoint.has_value());
  Checkpoint checkpoint;
  EXPECT_FALSE(DecodeCheckpoint(EncodeCheckpoint(checkpoint))->eval_loss.has_value());
}

TEST(CodecTest, UnknownFieldsAreSkipped) {
  // Field 4000, length-delimited: what a newer build may have added.
  const std::string bytes = EncodeJob(FullJob()) + std::string("\x82\xfa\x01\x03new", 7);
  const absl::StatusOr<Job> back = DecodeJob(bytes);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(EncodeJob(*back), EncodeJob(FullJob()));
}

TEST(CodecTest, TornAndRandomBytesAreErrorsNotCrashes) {
  const std::string bytes = EncodeJob(FullJob());
  int refused = 0;
  for (size_t length = 0; length < bytes.size(); ++length) {
    const absl::StatusOr<Job> back = DecodeJob(bytes.substr(0, length));
    if (back.ok()) continue;
    ++refused;
    EXPECT_EQ(ErrorReason(back.status()), "CORRUPT_RECORD");
  }
  EXPECT_GT(refused, static_cast<int>(bytes.size() / 2));
  for (uint64_t seed = 0; seed < 3'000; ++seed) {
    std::string mutated = bytes;
    for (uint64_t i = 0; i < 1 + seed % 4; ++i) {
      mutated[CounterBits(seed, 2 * i) % mutated.size()] = static_cast<char>(CounterBits(seed, 2 * i + 1));
    }
    DecodeJob(mutated).status().IgnoreError();
    DecodeWorker(mutated).status().IgnoreError();
    DecodeMetrics(mutated).status().IgnoreError();
  }
}

TEST(CodecTest, WorkersKeepTheirInventory) {
  Worker worker;
  worker.id = "w";
  worker.draining = true;
  worker.devices = {{"cpu-0", DeviceFacts()}};
  worker.devices[0].facts.device_class = "c";
  worker.devices[0].facts.isa = "";
  worker.devices[0].facts.cudnn_version = 91400;
  worker.devices[0].facts.has_fp8 = true;
  worker.devices[0].facts.memory_bytes_per_second = 4e12;
  worker.models = {{"n", "d", ModelShape(), "t", 5, "gguf:Q4_1", true}};
  const absl::StatusOr<Worker> back = DecodeWorker(EncodeWorker(worker));
  ASSERT_TRUE(back.ok());
  EXPECT_TRUE(back->draining);
  EXPECT_EQ(back->devices.at(0).facts.isa, "");
  EXPECT_EQ(back->devices.at(0).facts.cudnn_version, 91400);
  EXPECT_TRUE(back->devices.at(0).facts.has_fp8);
  EXPECT_DOUBLE_EQ(back->devices.at(0).facts.memory_bytes_per_second, 4e12);
  EXPECT_TRUE(back->models.at(0).has_chat_template);
}

}  // namespace
}  // namespace longhaul::server
