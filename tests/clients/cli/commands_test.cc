#include <gmock/gmock.h>

#include "base/hash.h"
#include "nlohmann/json.hpp"
#include "tests/clients/cli/cli_fixture.h"
#include "yaml-cpp/yaml.h"

namespace longhaul::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using CommandTest = CliTest;

TEST_F(CommandTest, HelpNamesTheExitCodes) {
  EXPECT_EQ(Run({"--help"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("Exit codes:"));
  EXPECT_THAT(out_.str(), HasSubstr("6  wait --timeout ran out"));
  EXPECT_EQ(Run({"submit", "--help"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("--lora-rank"));
}

TEST_F(CommandTest, UsageErrors) {
  EXPECT_EQ(Run({}), kInvalid);
  EXPECT_EQ(Run({"no-such-command"}), kInvalid);
  EXPECT_EQ(Run({"get"}), kInvalid);
  EXPECT_EQ(Run({"list", "-o", "xml"}), kInvalid);
  EXPECT_EQ(Run({"list", "--state", "flying"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("--state"));
}

TEST_F(CommandTest, AMistypedWordIsNamedWithItsNeighbour) {
  EXPECT_EQ(Run({"submt"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("longhaul: error: `longhaul` has no command 'submt' [USAGE]\n"
                                    "  what to do: did you mean submit? `longhaul --help` lists"));
  EXPECT_EQ(Run({"data", "previw"}), kInvalid);
  EXPECT_THAT(err_.str(),
              HasSubstr("`longhaul data` has no command 'previw' [USAGE]\n  what to do: did you mean preview?"));
  EXPECT_EQ(Run({"submit", "--lerning-rate", "1e-4"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("`longhaul submit` has no flag --lerning-rate [USAGE]\n"
                                    "  what to do: did you mean --learning-rate? `longhaul submit --help`"));
  EXPECT_EQ(Run({"get", "a", "b"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("`longhaul get` takes no further argument 'b'"));
  EXPECT_EQ(Run({"get"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("`longhaul get`: job is required [USAGE]\n  what to do: `longhaul get --help`"));
  EXPECT_EQ(Run({}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("`longhaul` needs a command"));
  EXPECT_EQ(Run({"list", "-o", "xml"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("is 'xml'; must be table, wide, json, yaml or name"));
  EXPECT_EQ(Run({"list", "--limit", "0"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("--limit is '0'; must be a number above 0 [USAGE]"));
  EXPECT_EQ(Run({"list", "--limit", "many"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("--limit is 'many'; must be a number"));
  const std::string long_value(100'000, 'x');
  EXPECT_EQ(Run({"list", "--limit", long_value}), kInvalid);
  EXPECT_EQ(Run({"--", "lst"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("has no command 'lst'"));
  EXPECT_EQ(Run({"submit", "--model"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("--model needs a value"));
  EXPECT_EQ(out_.str(), "");
}

TEST_F(CommandTest, AddressesThatAreNone) {
  for (const char* address : {"127.0.0.1", "127.0.0.1:", ":7070", "host:99999", "host:x", "host:0", "nonsense"}) {
    EXPECT_EQ(Run({"list", "--server", address}), kInvalid) << address;
    EXPECT_THAT(err_.str(), HasSubstr("is '" + std::string(address) + "'; must be HOST:PORT"));
  }
  EXPECT_EQ(Run({"list", "--tls-server-name", "x"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("there is no TLS; give --tls-ca FILE"));
}

TEST_F(CommandTest, TheBeginningOfEveryIdIsAmbiguous) {
  AddJob("ftjob-a1", v1::RUNNING);
  AddJob("ftjob-b2", v1::RUNNING);
  for (const char* text : {"f", "ftjob", "ftjob-"}) {
    EXPECT_EQ(Run({"get", text}), kInvalid) << text;
    EXPECT_THAT(err_.str(), HasSubstr("AMBIGUOUS_ID"));
  }
}

TEST_F(CommandTest, FilesOfSecurityFlags) {
  EXPECT_EQ(Run({"list", "--tls-ca", Write("no.pem", "no certificate")}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("no.pem has no certificate in PEM form [TLS_MATERIAL]"));
  EXPECT_EQ(Run({"list", "--tls-ca", (dir_ / "absent").string()}), kInternal);
  EXPECT_THAT(err_.str(), HasSubstr("--tls-ca: cannot open"));
  EXPECT_EQ(Run({"list", "--token-file", (dir_ / "absent").string()}), kInternal);
  EXPECT_THAT(err_.str(), HasSubstr("--token-file: cannot open"));
  EXPECT_THAT(err_.str(), HasSubstr("what to do: see that the path is right"));
}

TEST_F(CommandTest, UnreachableSchedulerIsNamedWithWhatToDo) {
  scheduler_.Stop();
  EXPECT_EQ(Run({"list"}), kUnreachable);
  EXPECT_EQ(out_.str(), "");
  EXPECT_THAT(err_.str(), HasSubstr("the scheduler at " + scheduler_.address() + " cannot be reached"));
  EXPECT_THAT(err_.str(), HasSubstr("what to do: start the scheduler"));
  EXPECT_THAT(err_.str(), HasSubstr("nothing listens there"));
}

TEST_F(CommandTest, SubmitUploadsThenCreates) {
  const std::string data(3'000'000, 'x');
  const std::string path = Write("train.jsonl", data);
  ASSERT_EQ(Run({"submit", "--model", "m", "--data", path, "--rank", "8", "--name", "n"}), kOk) << err_.str();
  EXPECT_EQ(scheduler_.blobs.blobs.at(Sha256Hex(data)), data);
  ASSERT_EQ(scheduler_.jobs.created.size(), 1u);
  const v1::CreateFineTuneJobRequest& request = scheduler_.jobs.created[0];
  EXPECT_EQ(request.spec().dataset().file_name(), "train.jsonl");
  EXPECT_EQ(request.spec().dataset().size_bytes(), 3'000'000);
  EXPECT_NE(request.request_id(), "");
  EXPECT_EQ(out_.str(), scheduler_.jobs.jobs[0].id() + "\n");
  EXPECT_THAT(err_.str(), HasSubstr("next: longhaul watch " + scheduler_.jobs.jobs[0].id()));
  // Present by now: nothing is sent again.
  ASSERT_EQ(Run({"submit", "--model", "m", "--data", path, "-o", "name"}), kOk);
  EXPECT_EQ(scheduler_.blobs.write_offsets.size(), 1u);
  EXPECT_EQ(err_.str(), "");
}

TEST_F(CommandTest, BrokenUploadGoesOnWhereItBroke) {
  const std::string data(5 << 20, 'y');
  scheduler_.blobs.break_writes = 2;
  ASSERT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", data)}), kOk) << err_.str();
  EXPECT_THAT(scheduler_.blobs.write_offsets, ::testing::ElementsAre(0, 1 << 20, 2 << 20));
  EXPECT_EQ(scheduler_.blobs.blobs.at(Sha256Hex(data)), data);
  EXPECT_THAT(err_.str(), HasSubstr("connection lost, continuing"));
}

// gRPC has several codes for a connection that is reset in the middle of a message.
TEST_F(CommandTest, AResetUploadGoesOnWhateverGrpcCallsIt) {
  for (const grpc::StatusCode code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNKNOWN}) {
    const std::string data(2 << 20, code == grpc::StatusCode::INTERNAL ? 'i' : 'u');
    scheduler_.blobs.broken = code;
    scheduler_.blobs.break_writes = 1;
    scheduler_.blobs.write_offsets.clear();
    ASSERT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", data)}), kOk) << err_.str();
    EXPECT_THAT(scheduler_.blobs.write_offsets, ::testing::ElementsAre(0, 1 << 20));
    EXPECT_EQ(scheduler_.blobs.blobs.at(Sha256Hex(data)), data);
  }
}

TEST_F(CommandTest, AnUploadOnADamagedBeginningStartsAgain) {
  const std::string data = "{\"text\": \"whole\"}";
  scheduler_.blobs.partials[Sha256Hex(data)] = "damaged";
  ASSERT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", data)}), kOk) << err_.str();
  EXPECT_THAT(scheduler_.blobs.write_offsets, ::testing::ElementsAre(7, 0));
  EXPECT_EQ(scheduler_.blobs.blobs.at(Sha256Hex(data)), data);
}

TEST_F(CommandTest, WaitsForAnotherUploadOfTheSameData) {
  const std::string data = "{\"text\": \"theirs\"}";
  scheduler_.blobs.uploaded_by_other = data;
  ASSERT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", data)}), kOk) << err_.str();
  EXPECT_EQ(scheduler_.blobs.write_offsets.size(), 1u);
  EXPECT_THAT(err_.str(), HasSubstr("another upload of the same data is under way"));
  EXPECT_THAT(err_.str(), Not(HasSubstr("connection lost")));
}

TEST_F(CommandTest, NoProxyStandsBetweenLoopbackAddresses) {
  for (const char* name : {"no_grpc_proxy", "no_proxy"}) ::unsetenv(name);
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) ::setenv(name, "http://127.0.0.1:1", 1);
  EXPECT_EQ(Run({"list"}), kOk) << err_.str();
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) ::unsetenv(name);
}

TEST_F(CommandTest, InvalidSpecIsRefusedBeforeTheUpload) {
  const std::string path = Write("d.jsonl", "{}");
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", path, "--rank", "0", "--lr", "-1"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("spec.hyperparameters.lora_rank (--lora-rank): is 0; must be 1 to"));
  EXPECT_THAT(err_.str(), HasSubstr("spec.hyperparameters.learning_rate (--learning-rate)"));
  EXPECT_EQ(Run({"submit", "--rank", "1"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("  --model: is missing; give a model that a worker has\n  --data: is missing"));
  EXPECT_TRUE(scheduler_.blobs.blobs.empty());
  EXPECT_TRUE(scheduler_.jobs.created.empty());
}

TEST_F(CommandTest, DatasetThatCannotBeUsed) {
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", (dir_ / "absent").string()}), kInternal);
  EXPECT_THAT(err_.str(), HasSubstr("absent"));
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", Write("empty.jsonl", "")}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("empty.jsonl', which is empty"));
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", dir_.string()}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("spec.dataset (--data) is '" + dir_.string() + "', a folder"));
}

TEST_F(CommandTest, ServerErrorShowsReasonViolationsAndHint) {
  scheduler_.jobs.create_status =
      DetailedError(grpc::StatusCode::INVALID_ARGUMENT, "MODEL_UNKNOWN", "no worker has the model",
                    {{"spec.model", "is 'm'; did you mean 'mm'?"}});
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", "{}")}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("[MODEL_UNKNOWN]"));
  EXPECT_THAT(err_.str(), HasSubstr("spec.model (--model): is 'm'; did you mean 'mm'?"));
  EXPECT_THAT(err_.str(), HasSubstr("longhaul workers -o wide"));
  EXPECT_TRUE(scheduler_.blobs.blobs.empty()) << "nothing is sent for a job that is refused";
  scheduler_.jobs.create_status =
      DetailedError(grpc::StatusCode::FAILED_PRECONDITION, "EXCEEDS_EVERY_DEVICE", "needs 9 GiB, has 2 GiB");
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", "{}")}), kJobFailed);
}

TEST_F(CommandTest, JobFileWithFlagsOverIt) {
  Write("train.jsonl", "{}");
  const std::string file =
      Write("job.yaml", "model: m\ndataset: {file_name: train.jsonl}\nhyperparameters: {epochs: 2}\n");
  ASSERT_EQ(Run({"submit", "-f", file, "--epochs", "3", "--request-id", "r1"}), kOk) << err_.str();
  EXPECT_DOUBLE_EQ(scheduler_.jobs.created[0].spec().hyperparameters().epochs(), 3);
  EXPECT_EQ(scheduler_.jobs.created[0].request_id(), "r1");
}

TEST_F(CommandTest, IdsByUniquePrefix) {
  AddJob("ftjob-abc1", v1::QUEUED);
  AddJob("ftjob-abd2", v1::RUNNING);
  EXPECT_EQ(Run({"get", "ftjob-abc"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("ftjob-abc1"));
  EXPECT_EQ(Run({"get", "abd"}), kOk);
  EXPECT_EQ(Run({"get", "ab"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("ftjob-abc1, ftjob-abd2"));
  EXPECT_EQ(Run({"get", "zz"}), kNotFound);
  EXPECT_THAT(err_.str(), HasSubstr("longhaul list"));
}

TEST_F(CommandTest, ListFormatsAndPages) {
  for (int i = 0; i < 5; ++i) {
    v1::Job& job = AddJob("ftjob-" + std::to_string(i), v1::RUNNING);
    job.set_suffix("a-name-that-nobody-truncates-" + std::to_string(i));
    job.mutable_progress()->set_step(3);
    job.mutable_progress()->set_total_steps(9);
    job.mutable_progress()->set_loss(2.5);
    job.mutable_attempt()->set_kind(v1::ATTEMPT_KIND_TRAIN);
    job.mutable_attempt()->set_host_bytes_planned(3 << 29);
  }
  ASSERT_EQ(Run({"list", "-o", "name", "--limit", "3"}), kOk);
  EXPECT_EQ(out_.str(), "ftjob-0\nftjob-1\nftjob-2\n");
  EXPECT_THAT(err_.str(), HasSubstr("there are more"));
  ASSERT_EQ(Run({"-o", "table", "list"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("a-name-that-nobody-truncates-4  RUNNING  -       3/9       2.500  1.50 GiB RAM"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("\x1b")));
  ASSERT_EQ(Run({"list", "-o", "json", "--limit", "2"}), kOk);
  const auto json = nlohmann::json::parse(out_.str());
  EXPECT_EQ(json["jobs"].size(), 2u);
  EXPECT_EQ(json["jobs"][0]["state"], "RUNNING");
  ASSERT_EQ(Run({"list", "--state", "queued"}), kOk);
  EXPECT_THAT(out_.str(), Not(HasSubstr("ftjob-")));
}

TEST_F(CommandTest, ListOfAllProjectsSaysWhoseEachIs) {
  AddJob("ftjob-1", v1::RUNNING).set_project("red");
  AddJob("ftjob-2", v1::QUEUED).set_project("blue");
  ASSERT_EQ(Run({"list", "--all-projects"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("ID       PROJECT  NAME"));
  EXPECT_THAT(out_.str(), HasSubstr("ftjob-1  red      -"));
  EXPECT_THAT(out_.str(), HasSubstr("ftjob-2  blue     -"));
  ASSERT_EQ(Run({"list", "--all-projects", "-o", "wide"}), kOk);
  EXPECT_EQ(out_.str().find("PROJECT"), out_.str().rfind("PROJECT")) << "one such column is enough";
  ASSERT_EQ(Run({"list", "--project", "red", "-o", "name"}), kOk);
  EXPECT_EQ(out_.str(), "ftjob-1\n");
  EXPECT_EQ(Run({"list", "--project", "red", "--all-projects"}), kInvalid);
}

TEST_F(CommandTest, GetShowsBadLinesAndFailure) {
  v1::Job& job = AddJob("ftjob-bad", v1::FAILED);
  job.mutable_failure()->set_reason(v1::INVALID_DATASET);
  job.mutable_failure()->set_message("3 bad lines");
  job.mutable_failure()->set_user_can_fix(true);
  job.mutable_failure()->set_log_tail("one\ntwo\n");
  job.mutable_data_report()->set_error_count(3);
  v1::DataError* error = job.mutable_data_report()->add_errors();
  error->set_line(7);
  error->set_field("messages[1].role");
  error->set_reason("is 'robot'");
  ASSERT_EQ(Run({"get", "bad"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("line 7: messages[1].role: is 'robot'"));
  EXPECT_THAT(out_.str(), HasSubstr("... and 2 more"));
  EXPECT_THAT(out_.str(), HasSubstr("Failure:      INVALID_DATASET  3 bad lines\n"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("  | two")));
  job.clear_data_report();
  ASSERT_EQ(Run({"get", "bad"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("INVALID_DATASET  3 bad lines"));
  EXPECT_THAT(out_.str(), HasSubstr("  | two"));
}

TEST_F(CommandTest, YamlOfAJobIsAJobFile) {
  v1::Job& job = AddJob("ftjob-y", v1::RUNNING);
  job.set_suffix("007");
  job.mutable_spec()->set_model("true");
  job.mutable_spec()->mutable_hyperparameters()->set_lora_rank(8);
  job.mutable_spec()->mutable_hyperparameters()->set_max_steps(60);
  ASSERT_EQ(Run({"get", "y", "-o", "yaml"}), kOk);
  const YAML::Node yaml = YAML::Load(out_.str());
  EXPECT_EQ(yaml["suffix"].Scalar(), "007");
  EXPECT_THAT(out_.str(), HasSubstr("suffix: \"007\""));
  EXPECT_THAT(out_.str(), HasSubstr("model: \"true\""));
  EXPECT_EQ(yaml["spec"]["hyperparameters"]["max_steps"].as<int>(), 60);

  job.mutable_spec()->mutable_dataset()->set_sha256(std::string(64, 'a'));
  job.mutable_spec()->mutable_dataset()->set_size_bytes(5);
  job.mutable_resolved_spec()->set_model("true");
  ASSERT_EQ(Run({"get", "y", "-o", "yaml"}), kOk);
  const std::string file = Write("again.yaml", out_.str());
  // Without an id it is not what `get` printed, and a key that a job has not is a mistake.
  EXPECT_EQ(Run({"submit", "-f", Write("typo.yaml", "spec: {model: m}\ndeadline: 3600\n")}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("deadline is not a known key"));
  ASSERT_EQ(Run({"submit", "-f", file, "--rank", "4"}), kOk) << err_.str();
  ASSERT_EQ(scheduler_.jobs.created.size(), 1u);
  EXPECT_EQ(scheduler_.jobs.created[0].suffix(), "007");
  EXPECT_EQ(scheduler_.jobs.created[0].spec().hyperparameters().lora_rank(), 4);
  EXPECT_EQ(scheduler_.jobs.created[0].spec().dataset().sha256(), std::string(64, 'a'));
}

TEST_F(CommandTest, CancelAndItsRefusal) {
  AddJob("ftjob-run", v1::RUNNING);
  AddJob("ftjob-done", v1::SUCCEEDED);
  EXPECT_EQ(Run({"cancel", "run"}), kOk);
  EXPECT_EQ(out_.str(), "ftjob-run CANCELLING\n");
  EXPECT_EQ(Run({"cancel", "done"}), kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("ILLEGAL_TRANSITION"));
}

TEST_F(CommandTest, EstimateExitCodes) {
  EXPECT_EQ(Run({"estimate", "--model", "m"}), kInvalid);
  EXPECT_THAT(err_.str(), HasSubstr("cannot tell"));
  v1::DeviceClassEstimate* entry = scheduler_.jobs.estimate.add_classes();
  entry->set_device_class("cpu-avx2-2t");
  entry->set_why("needs 3 GiB, has 2 GiB");
  entry->set_longest_sequence_length(12'345);
  v1::MemoryPart* part = entry->mutable_estimate()->add_host_parts();
  part->set_name("weights");
  part->set_bytes(1 << 30);
  EXPECT_EQ(Run({"estimate", "--model", "m", "--max-seq-len", "100000"}), kJobFailed);
  EXPECT_THAT(out_.str(), HasSubstr("12,345"));
  EXPECT_THAT(out_.str(), HasSubstr("weights 1.00 GiB"));
  EXPECT_THAT(out_.str(), HasSubstr("why: needs 3 GiB, has 2 GiB"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("warning")));
  entry->set_fits(true);
  entry->mutable_estimate()->add_warnings("attention is slow there");
  scheduler_.jobs.estimate.set_fits_somewhere(true);
  EXPECT_EQ(Run({"estimate", "--model", "m", "--project", "ants"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("warning: attention is slow there"));
  EXPECT_EQ(scheduler_.jobs.estimated.project(), "ants");
}

TEST_F(CommandTest, EstimateTellsWhereInTheQueueItWouldBe) {
  v1::EstimateFineTuneJobResponse& estimate = scheduler_.jobs.estimate;
  estimate.add_classes()->set_fits(true);
  estimate.set_fits_somewhere(true);
  v1::QueueForecast* queue = estimate.mutable_queue();
  queue->set_device_class("H200");
  EXPECT_EQ(Run({"estimate", "--model", "m"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("queued now it would start at once, on H200"));
  queue->set_position(3);
  queue->set_reason(v1::WAITING_FOR_VRAM);
  queue->set_reason_detail("needs 40 GiB");
  queue->mutable_expected_start_time()->set_seconds(4'102'444'800);
  EXPECT_EQ(Run({"estimate", "--model", "m"}), kOk);
  EXPECT_THAT(out_.str(),
              HasSubstr("be number 3 (WAITING_FOR_VRAM: needs 40 GiB) and start: about 2100-01-01T00:00:00"));
  estimate.clear_queue();
  estimate.set_queue_unknown(true);
  EXPECT_EQ(Run({"estimate", "--model", "m"}), kOk);
  EXPECT_THAT(out_.str(), AllOf(HasSubstr(": fits"), HasSubstr("when it would start is not known now")));
}

TEST_F(CommandTest, ExplainSaysWhyAndUntilWhen) {
  AddJob("ftjob-why", v1::QUEUED);
  v1::ExplainFineTuneJobResponse& answer = scheduler_.jobs.explanation;
  answer.mutable_job()->set_state(v1::QUEUED);
  answer.mutable_job()->set_project("team");
  answer.mutable_job()->set_queue_position(2);
  answer.set_summary("waits, WAITING_FOR_QUOTA: quota of project team: has 1 of 1 running jobs");
  answer.add_unblocks("the end of a running job");
  answer.set_waiting_jobs(7);
  answer.set_project_share(0.25);
  answer.mutable_quota()->set_running_jobs(1);
  v1::StartPlace* place = answer.add_places();
  place->set_worker_id("w1");
  place->set_possible(true);
  place->set_why("needs 2 CPU threads");
  EXPECT_EQ(Run({"explain", "why"}), kOk) << err_.str();
  for (const char* part :
       {"ftjob-why QUEUED", "has 1 of 1 running jobs", "unblocks:  the end of a running job", "position:  2 of 7",
        "starts:    nobody can tell", "has used 25.0% of late", "1 running jobs", "needs 2 CPU threads"}) {
    EXPECT_THAT(out_.str(), HasSubstr(part));
  }
  EXPECT_EQ(Run({"explain", "why", "-o", "json"}), kOk);
  EXPECT_EQ(nlohmann::json::parse(out_.str())["waiting_jobs"], 7);
  answer.mutable_job()->set_queue_position(0);
  answer.mutable_job()->set_state(v1::RUNNING);
  answer.set_summary("runs on worker w1");
  EXPECT_EQ(Run({"explain", "why"}), kOk);
  EXPECT_THAT(out_.str(), Not(HasSubstr("position")));
  EXPECT_EQ(Run({"explain", "nothing"}), kNotFound);
}

TEST_F(CommandTest, PauseAndResume) {
  AddJob("ftjob-run", v1::RUNNING);
  EXPECT_EQ(Run({"pause", "run"}), kOk);
  EXPECT_EQ(out_.str(), "ftjob-run PAUSING\n");
  EXPECT_EQ(Run({"resume", "run"}), kOk);
  EXPECT_EQ(out_.str(), "ftjob-run QUEUED\n");
  EXPECT_EQ(Run({"pause", "nothing"}), kNotFound);
}

TEST_F(CommandTest, DownloadVerifiesAndGoesOn) {
  const std::string content(10'000, 'a');
  v1::Job& job = AddJob("ftjob-ok", v1::SUCCEEDED);
  v1::BlobFile* file = job.mutable_artifact()->add_files();
  file->set_path("adapter_model.safetensors");
  file->set_sha256(Sha256Hex(content));
  file->set_size_bytes(10'000);
  scheduler_.blobs.blobs[file->sha256()] = content;
  scheduler_.blobs.break_reads = 1;
  const std::string target = (dir_ / "adapter").string();
  ASSERT_EQ(Run({"download", "ok", "-d", target}), kOk) << err_.str();
  EXPECT_EQ(out_.str(), target + "\n");
  EXPECT_EQ(ReadAll(target + "/adapter_model.safetensors"), content);
  EXPECT_THAT(scheduler_.blobs.read_offsets, ::testing::ElementsAre(0, 5000));
  // There already: not read again. Wrong on disk: replaced.
  ASSERT_EQ(Run({"download", "ok", "-d", target}), kOk);
  EXPECT_EQ(scheduler_.blobs.read_offsets.size(), 2u);
  std::ofstream(target + "/adapter_model.safetensors") << "torn";
  ASSERT_EQ(Run({"download", "ok", "-d", target}), kOk);
  EXPECT_EQ(ReadAll(target + "/adapter_model.safetensors"), content);
}

TEST_F(CommandTest, DownloadRefusesWrongContentAndPaths) {
  v1::Job& job = AddJob("ftjob-ok", v1::SUCCEEDED);
  v1::BlobFile* file = job.mutable_artifact()->add_files();
  file->set_path("a.bin");
  file->set_sha256(Sha256Hex("right"));
  file->set_size_bytes(5);
  scheduler_.blobs.blobs[file->sha256()] = "wrong";
  const std::string target = (dir_ / "adapter").string();
  EXPECT_EQ(Run({"download", "ok", "-d", target}), kInternal);
  EXPECT_TRUE(std::filesystem::is_empty(target));
  for (const char* path : {"../a.bin", "/etc/a", "..", "", "a/b"}) {
    scheduler_.jobs.jobs[0].mutable_artifact()->mutable_files(0)->set_path(path);
    EXPECT_EQ(Run({"download", "ok", "-d", target}), kInternal) << path;
    EXPECT_THAT(err_.str(), HasSubstr("BAD_FILE_NAME"));
  }
  scheduler_.jobs.jobs[0].set_state(v1::RUNNING);
  EXPECT_EQ(Run({"download", "ok", "-d", target}), kRefused);
}

TEST_F(CommandTest, LogsAndMetrics) {
  AddJob("ftjob-l", v1::SUCCEEDED).mutable_attempt()->set_number(1);
  scheduler_.jobs.log = "line one\nline two\nline three\n";
  ASSERT_EQ(Run({"logs", "l"}), kOk);
  EXPECT_EQ(out_.str(), scheduler_.jobs.log);
  ASSERT_EQ(Run({"logs", "-f", "l"}), kOk);
  EXPECT_EQ(out_.str(), scheduler_.jobs.log);
  for (int step = 1; step <= 7; ++step) {
    scheduler_.jobs.points.emplace_back();
    scheduler_.jobs.points.back().set_step(step);
  }
  ASSERT_EQ(Run({"metrics", "l", "-o", "json"}), kOk);
  EXPECT_EQ(nlohmann::json::parse(out_.str())["points"].size(), 7u);
}

TEST_F(CommandTest, WorkersAndDrain) {
  EXPECT_EQ(Run({"workers"}), kOk);
  EXPECT_THAT(err_.str(), HasSubstr("no worker has registered"));
  v1::Worker* worker = scheduler_.workers.workers.add_workers();
  worker->set_id("worker-one");
  worker->set_state(v1::WORKER_ONLINE);
  v1::Model* model = worker->mutable_inventory()->add_models();
  model->set_name("SmolLM2");
  scheduler_.workers.workers.add_workers()->set_id("other");
  EXPECT_EQ(Run({"workers", "-o", "name"}), kOk);
  EXPECT_EQ(out_.str(), "worker-one\nother\n");
  worker->add_device_rests()->set_device_id("gpu-3");
  EXPECT_EQ(Run({"workers", "-o", "wide"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("worker-one  ONLINE"));
  EXPECT_THAT(out_.str(), HasSubstr("SmolLM2"));
  EXPECT_THAT(out_.str(), HasSubstr("device gpu-3 of worker worker-one rests after 0 faults"));
  EXPECT_THAT(out_.str(), HasSubstr("; `longhaul undrain worker-one` ends it\n"));
  EXPECT_EQ(Run({"drain", "work"}), kOk);
  EXPECT_EQ(out_.str(), "worker-one ONLINE (draining)\n");
  EXPECT_EQ(Run({"drain", "none"}), kNotFound);
}

TEST_F(CommandTest, ToolCommandsPassEverythingOn) {
  env_.tool_dirs = {(dir_ / "nothing").string(), dir_.string()};
  EXPECT_EQ(Run({"chat", "--model", "m.gguf"}), kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("install the package longhaul-worker"));
  const std::string tool = Write("longhaul-tool", "#!/bin/sh\n");
  Run({"chat", "--model", "m.gguf", "--prompt", "two words", "--max-tokens", "5"});
  EXPECT_THAT(exec_argv_, ::testing::ElementsAre("longhaul", "chat", "--model", "m.gguf", "--prompt", "two words",
                                                 "--max-tokens", "5"));
  EXPECT_EQ(exec_path_, tool);
  Run({"data", "preview", "--data", "d", "--help"});
  EXPECT_THAT(exec_argv_, ::testing::ElementsAre("longhaul", "data", "preview", "--data", "d", "--help"));
  Run({"data", "preview", "--data", "d", "-o", "json"});
  EXPECT_THAT(exec_argv_, ::testing::ElementsAre("longhaul", "data", "preview", "--data", "d", "-o", "json"));
}

TEST_F(CommandTest, Version) {
  EXPECT_EQ(Run({"version"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("longhaul 0."));
}

}  // namespace
}  // namespace longhaul::cli
