// A watch as people read it. On a terminal: events as lines above one status line that is redrawn. Elsewhere: a line an
// event and a line a progress message, nothing twice.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <utility>

#include "clients/cli/render.h"
#include "clients/cli/watch.h"

namespace longhaul::cli {

class FollowView : public WatchSink {
 public:
  // `notes` gets what is about the connection. On a terminal `out` is redrawn, so it must be the terminal itself.
  // `from_start`: every event comes, so that the snapshot's state needs no line of its own.
  FollowView(const CliEnv& env, std::ostream& out, bool out_is_terminal, bool from_start);
  ~FollowView() override;
  void OnSnapshot(const v1::Snapshot& snapshot) override;
  void OnEvent(const v1::JobEvent& event) override;
  void OnProgress(const v1::TrainingProgress& progress) override;
  void OnDisconnected(const absl::Status& cause) override;
  void OnReconnected() override;
  void OnGap() override;
  // Takes the status line away, so that what follows starts on an empty line.
  void Clear();

 private:
  void Line(const std::string& text);
  void Draw();

  const CliEnv& env_;
  std::ostream& out_;
  const bool is_terminal_;
  bool tell_snapshot_;  // the first one of a watch that begins in the middle
  bool drawn_ = false;
  std::string status_;                              // the redrawn line
  std::pair<int32_t, int64_t> last_shown_{-1, -1};  // (attempt, step) of the last progress
  std::optional<double> shown_eval_loss_;           // with it
};

// One JSON object a line, the stream's own messages without heartbeats.
class JsonLinesView : public WatchSink {
 public:
  explicit JsonLinesView(const CliEnv& env) : env_(env) {}
  void OnSnapshot(const v1::Snapshot& snapshot) override;
  void OnEvent(const v1::JobEvent& event) override;
  void OnProgress(const v1::TrainingProgress& progress) override;
  void OnDisconnected(const absl::Status& cause) override;

 private:
  void Print(const v1::WatchFineTuneJobResponse& message);
  const CliEnv& env_;
};

}  // namespace longhaul::cli
