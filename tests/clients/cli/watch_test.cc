#include "clients/cli/watch.h"

#include <gmock/gmock.h>

#include <future>

#include "nlohmann/json.hpp"
#include "tests/clients/cli/cli_fixture.h"

namespace longhaul::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Writer = FakeJobs::WatchWriter;
using Request = v1::WatchFineTuneJobRequest;

constexpr char kId[] = "ftjob-w";

v1::WatchFineTuneJobResponse Snapshot(v1::JobState state, int64_t sequence) {
  v1::WatchFineTuneJobResponse message;
  message.mutable_snapshot()->mutable_job()->set_id(kId);
  message.mutable_snapshot()->mutable_job()->set_state(state);
  message.mutable_snapshot()->set_sequence(sequence);
  return message;
}

v1::WatchFineTuneJobResponse Event(int64_t sequence, v1::JobState from, v1::JobState to) {
  v1::WatchFineTuneJobResponse message;
  message.mutable_event()->set_sequence(sequence);
  message.mutable_event()->set_type(v1::JOB_EVENT_TYPE_STATE);
  message.mutable_event()->set_from_state(from);
  message.mutable_event()->set_state(to);
  return message;
}

v1::WatchFineTuneJobResponse Progress(int64_t step) {
  v1::WatchFineTuneJobResponse message;
  v1::TrainingProgress* progress = message.mutable_progress();
  progress->set_attempt(1);
  progress->set_step(step);
  progress->set_total_steps(60);
  progress->set_loss(3.25);
  progress->set_learning_rate(5e-4);
  progress->set_tokens_per_second(241.4);
  progress->set_eta_seconds(200);
  progress->set_host_bytes_used(1 << 30);
  progress->set_host_bytes_planned(3 << 29);
  return message;
}

class WatchTest : public CliTest {
 protected:
  WatchTest() { AddJob(kId, v1::RUNNING); }

  // A call that sends these and then ends with `status`.
  void Serve(std::vector<v1::WatchFineTuneJobResponse> messages, grpc::Status status = grpc::Status::OK) {
    scheduler_.jobs.watches.push_back([this, messages, status](grpc::ServerContext*, const Request&, Writer* writer) {
      for (const auto& message : messages) {
        if (message.has_event()) scheduler_.jobs.jobs[0].set_state(message.event().state());
        writer->Write(message);
      }
      return status;
    });
  }

  // Calls that send these and stay open until the client goes away; `sent` is of the only one.
  void ServeOpen(std::vector<v1::WatchFineTuneJobResponse> messages, std::promise<void>* sent = nullptr) {
    scheduler_.jobs.watches.push_back([messages, sent](grpc::ServerContext* context, const Request&, Writer* writer) {
      for (const auto& message : messages) writer->Write(message);
      if (sent != nullptr) sent->set_value();
      // Heartbeats are how a real server notices too; the write fails once the client has gone.
      v1::WatchFineTuneJobResponse heartbeat;
      heartbeat.mutable_heartbeat();
      while (!context->IsCancelled() && writer->Write(heartbeat)) std::this_thread::yield();
      return grpc::Status::OK;
    });
  }
};

TEST_F(WatchTest, PlainLinesToTheEnd) {
  Serve({Snapshot(v1::QUEUED, 1), Event(2, v1::QUEUED, v1::RUNNING), Progress(1), Progress(1), Progress(2),
         Event(3, v1::RUNNING, v1::SUCCEEDED)});
  EXPECT_EQ(Run({"watch", "w"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("ftjob-w QUEUED\n"));
  EXPECT_THAT(out_.str(), HasSubstr("QUEUED -> RUNNING"));
  EXPECT_THAT(out_.str(),
              HasSubstr("step 2/60  loss 3.250  lr 5.0e-04  241 tok/s  eta 3m 20s  mem 1.00 GiB of 1.50 GiB\n"));
  EXPECT_EQ(out_.str().find("step 1/60"), out_.str().rfind("step 1/60")) << "a repeated progress is shown once";
  EXPECT_THAT(out_.str(), Not(HasSubstr("\x1b")));
  EXPECT_THAT(err_.str(), HasSubstr("longhaul download ftjob-w"));
}

TEST_F(WatchTest, AnEvaluationIsToldOnce) {
  std::vector<v1::WatchFineTuneJobResponse> messages = {Snapshot(v1::RUNNING, 1)};
  for (int64_t step = 1; step <= 4; ++step) messages.push_back(Progress(step));
  messages[1].mutable_progress()->set_eval_loss(4.5);  // from before the first update
  messages[1].mutable_progress()->set_eval_step(0);
  messages[4].mutable_progress()->set_eval_loss(2.75);
  messages[4].mutable_progress()->set_eval_step(4);
  messages.push_back(messages[4]);  // told again by a watch that is resumed
  messages.push_back(Event(2, v1::RUNNING, v1::SUCCEEDED));
  Serve(messages);
  EXPECT_EQ(Run({"watch", "w"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("held-out 4.500 after step 0\n"));
  EXPECT_THAT(out_.str(), HasSubstr("held-out 2.750\n"));
  EXPECT_EQ(out_.str().find("held-out 2.750"), out_.str().rfind("held-out 2.750"));
  EXPECT_EQ(out_.str().find("step 4/60"), out_.str().rfind("step 4/60"));
}

TEST_F(WatchTest, TheLastStepIsShownAgainWithItsEvaluation) {
  std::vector<v1::WatchFineTuneJobResponse> messages = {Snapshot(v1::RUNNING, 1), Progress(4), Progress(4),
                                                        Event(2, v1::RUNNING, v1::SUCCEEDED)};
  messages[1].mutable_progress()->set_eval_loss(4.5);
  messages[2].mutable_progress()->set_eval_loss(2.75);
  Serve(messages);
  EXPECT_EQ(Run({"watch", "w"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("held-out 4.500\n"));
  EXPECT_THAT(out_.str(), HasSubstr("held-out 2.750\n"));
}

TEST_F(WatchTest, TerminalRedrawsOneStatusLine) {
  env_.out_is_terminal = true;
  env_.columns = 40;
  Serve({Snapshot(v1::RUNNING, 1), Progress(1), Event(2, v1::RUNNING, v1::SUCCEEDED)});
  EXPECT_EQ(Run({"watch", "w"}), kOk);
  EXPECT_THAT(out_.str(), HasSubstr("\r\x1b[Kstep 1/60  loss 3.250  lr 5.0e-04  241 \r\x1b[K"));
}

TEST_F(WatchTest, ResumesAfterALostConnectionWithoutGapOrDuplicate) {
  Serve({Snapshot(v1::QUEUED, 4), Event(5, v1::QUEUED, v1::RUNNING)}, {grpc::StatusCode::UNAVAILABLE, "gone"});
  Serve({}, grpc::Status::OK);  // a server that shuts down ends its streams cleanly
  Serve({Snapshot(v1::RUNNING, 6), Event(5, v1::QUEUED, v1::RUNNING), Event(6, v1::RUNNING, v1::FINALIZING),
         Event(7, v1::FINALIZING, v1::SUCCEEDED)});
  EXPECT_EQ(Run({"watch", "w"}), kOk);
  ASSERT_EQ(scheduler_.jobs.watch_requests.size(), 3u);
  EXPECT_FALSE(scheduler_.jobs.watch_requests[0].has_after_sequence());
  EXPECT_EQ(scheduler_.jobs.watch_requests[1].after_sequence(), 5);
  EXPECT_EQ(scheduler_.jobs.watch_requests[2].after_sequence(), 5);
  EXPECT_EQ(out_.str().find("QUEUED -> RUNNING"), out_.str().rfind("QUEUED -> RUNNING"));
  EXPECT_EQ(err_.str().find("connection lost"), err_.str().rfind("connection lost")) << "told once an outage";
  EXPECT_THAT(err_.str(), HasSubstr("reconnected"));
}

TEST_F(WatchTest, SurvivesARestartOfTheServer) {
  Serve({Snapshot(v1::RUNNING, 1)}, {grpc::StatusCode::UNAVAILABLE, "stopping"});
  scheduler_.jobs.watches.push_back([this](grpc::ServerContext*, const Request& request, Writer* writer) {
    EXPECT_EQ(request.after_sequence(), 1);
    scheduler_.jobs.jobs[0].set_state(v1::CANCELLED);
    writer->Write(Snapshot(v1::RUNNING, 1));
    writer->Write(Event(2, v1::RUNNING, v1::CANCELLED));
    return grpc::Status::OK;
  });
  // Between losing the connection and trying again, a new server takes the port: the old channel is of no use.
  class Sink : public WatchSink {
   public:
    explicit Sink(FakeScheduler* scheduler) : scheduler_(scheduler) {}
    void OnDisconnected(const absl::Status&) override {
      scheduler_->Stop();
      scheduler_->Start();
    }
    FakeScheduler* scheduler_;
  } sink(&scheduler_);
  Client client(scheduler_.address(), *OpenCliChannel(env_.default_channel), env_);
  WatchOptions options;
  options.id = kId;
  const auto job = WatchToEnd(client, options, sink);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::CANCELLED);
}

TEST_F(WatchTest, CompactedCursorGoesOnFromNow) {
  Serve({}, DetailedError(grpc::StatusCode::OUT_OF_RANGE, "EVENTS_COMPACTED", "older than the oldest kept event"));
  Serve({Snapshot(v1::RUNNING, 9), Event(10, v1::RUNNING, v1::SUCCEEDED)});
  EXPECT_EQ(Run({"watch", "w", "--after-sequence", "2"}), kOk);
  EXPECT_EQ(scheduler_.jobs.watch_requests[0].after_sequence(), 2);
  EXPECT_FALSE(scheduler_.jobs.watch_requests[1].has_after_sequence());
  EXPECT_THAT(err_.str(), HasSubstr("older events are gone"));
}

TEST_F(WatchTest, JsonIsOneObjectALine) {
  Serve({Snapshot(v1::RUNNING, 1), Progress(1), Event(2, v1::RUNNING, v1::SUCCEEDED)});
  EXPECT_EQ(Run({"watch", "w", "-o", "json"}), kOk);
  std::istringstream lines(out_.str());
  std::vector<std::string> kinds;
  for (std::string line; std::getline(lines, line);) kinds.push_back(nlohmann::json::parse(line).begin().key());
  EXPECT_THAT(kinds, ::testing::ElementsAre("snapshot", "progress", "event"));
}

TEST_F(WatchTest, WaitReturnsTheStatesExitCode) {
  Serve({Snapshot(v1::RUNNING, 1), Event(2, v1::RUNNING, v1::FAILED)});
  EXPECT_EQ(Run({"wait", "w"}), kJobFailed);
  EXPECT_EQ(out_.str(), "ftjob-w FAILED\n");
  scheduler_.jobs.watches.clear();
  Serve({Snapshot(v1::CANCELLED, 2)});
  scheduler_.jobs.jobs[0].set_state(v1::CANCELLED);
  EXPECT_EQ(Run({"wait", "w"}), kCancelled);
}

TEST_F(WatchTest, WaitTimesOut) {
  ServeOpen({Snapshot(v1::RUNNING, 1)});
  // On a slow machine a short time is over before the first message is there, which says the state.
  for (const char* timeout : {"50ms", "5s", "60s"}) {
    EXPECT_EQ(Run({"wait", "w", "--timeout", timeout}), kTimeout);
    if (err_.str().find("is still RUNNING") != std::string::npos) break;
  }
  EXPECT_THAT(err_.str(), HasSubstr("is still RUNNING"));
  EXPECT_EQ(Run({"wait", "w", "--timeout", "soon"}), kInvalid);
}

TEST_F(WatchTest, AWaitThatHearsNothingClaimsNoState) {
  scheduler_.jobs.watches.push_back([](grpc::ServerContext* context, const Request&, Writer*) {
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::OK;
  });
  EXPECT_EQ(Run({"wait", "w", "--timeout", "50ms"}), kTimeout);
  EXPECT_THAT(err_.str(), HasSubstr("before the scheduler told the state of ftjob-w"));
}

TEST_F(WatchTest, DeletedMeanwhileIsNotFound) {
  Serve({Snapshot(v1::QUEUED, 1)}, DetailedError(grpc::StatusCode::NOT_FOUND, "JOB_NOT_FOUND", "the job was deleted"));
  EXPECT_EQ(Run({"wait", "w"}), kNotFound);
}

TEST_F(WatchTest, InterruptDetachesAndTellsTheWayBack) {
  std::promise<void> sent;
  ServeOpen({Snapshot(v1::RUNNING, 1)}, &sent);
  std::future<void> stopper = std::async(std::launch::async, [&] {
    sent.get_future().wait();
    stop_.Stop();
  });
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", "{}"), "--follow"}), kInterrupted);
  EXPECT_THAT(err_.str(), HasSubstr("detached; the job goes on. Come back: longhaul watch ftjob-"));
}

TEST_F(WatchTest, WaitingForJsonGivesTheJobAsItEnded) {
  scheduler_.jobs.watches.push_back([this](grpc::ServerContext*, const Request&, Writer* writer) {
    scheduler_.jobs.jobs.back().set_state(v1::SUCCEEDED);
    writer->Write(Event(2, v1::VALIDATING, v1::SUCCEEDED));
    return grpc::Status::OK;
  });
  for (const char* flag : {"--wait", "--follow"}) {
    ASSERT_EQ(Run({"submit", "--model", "m", "--data", Write("d.jsonl", "{}"), flag, "-o", "json"}), kOk) << err_.str();
    const auto job = nlohmann::json::parse(out_.str());  // one message, and nothing else
    EXPECT_EQ(job["state"], "SUCCEEDED") << flag;
  }
  Run({"submit", "--model", "m", "--data", Write("d.jsonl", "{}"), "-o", "json"});
  EXPECT_EQ(nlohmann::json::parse(out_.str())["state"], "VALIDATING");
}

TEST_F(WatchTest, FollowShowsEveryEventFromTheFirst) {
  Serve({Snapshot(v1::VALIDATING, 1), Event(1, v1::JOB_STATE_UNSPECIFIED, v1::VALIDATING),
         Event(2, v1::VALIDATING, v1::QUEUED), Progress(1), Event(3, v1::QUEUED, v1::SUCCEEDED)});
  const std::string data = Write("d.jsonl", "{}");
  EXPECT_EQ(Run({"submit", "--model", "m", "--data", data, "--follow"}), kJobFailed)
      << "the fake's new job stays VALIDATING, so it did not succeed";
  EXPECT_EQ(scheduler_.jobs.watch_requests[0].after_sequence(), 0);
  EXPECT_THAT(err_.str(), HasSubstr("VALIDATING -> QUEUED"));
  EXPECT_THAT(err_.str(), HasSubstr("step 1/60"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("step"))) << "stdout has the id alone";
}

}  // namespace
}  // namespace longhaul::cli
