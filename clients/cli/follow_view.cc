#include "clients/cli/follow_view.h"

#include <ostream>

namespace longhaul::cli {

FollowView::FollowView(const CliEnv& env, std::ostream& out, bool out_is_terminal, bool from_start)
    : env_(env), out_(out), is_terminal_(out_is_terminal), tell_snapshot_(!from_start) {}

FollowView::~FollowView() { Clear(); }

void FollowView::Clear() {
  if (drawn_) out_ << "\r\x1b[K" << std::flush;
  drawn_ = false;
}

void FollowView::Line(const std::string& text) {
  Clear();
  out_ << text << "\n" << std::flush;
  Draw();
}

void FollowView::Draw() {
  if (!is_terminal_ || status_.empty()) return;
  // A line as wide as the terminal would wrap and could not be redrawn.
  const size_t width = env_.columns > 1 ? static_cast<size_t>(env_.columns - 1) : 79;
  out_ << "\r\x1b[K" << status_.substr(0, width) << std::flush;
  drawn_ = true;
}

void FollowView::OnSnapshot(const v1::Snapshot& snapshot) {
  const v1::Job& job = snapshot.job();
  if (tell_snapshot_) {
    std::string text = job.id() + " " + v1::JobState_Name(job.state());
    if (job.reason() != v1::REASON_UNSPECIFIED) text += "  " + v1::Reason_Name(job.reason());
    if (!job.reason_detail().empty()) text += "  " + job.reason_detail();
    Line(text);
  }
  tell_snapshot_ = false;
  if (job.has_progress() && job.progress().step() > 0) OnProgress(job.progress());
}

void FollowView::OnEvent(const v1::JobEvent& event) {
  if (IsTerminal(event.state())) status_.clear();
  Line(DescribeEvent(event));
}

void FollowView::OnProgress(const v1::TrainingProgress& progress) {
  const std::pair<int32_t, int64_t> key(progress.attempt(), progress.step());
  // A step is told again where an evaluation followed it, and by a watch that is resumed.
  const std::optional<double> eval_loss =
      progress.has_eval_loss() ? std::optional<double>(progress.eval_loss()) : std::nullopt;
  if (key == last_shown_ && (!eval_loss.has_value() || eval_loss == shown_eval_loss_)) return;
  const bool step_is_told = key == last_shown_;
  last_shown_ = key;
  shown_eval_loss_ = eval_loss;
  if (!is_terminal_ && step_is_told) return Line("held-out " + DescribeEvaluation(progress));
  if (!is_terminal_) return Line(DescribeProgress(progress));
  status_ = DescribeProgress(progress);
  Draw();
}

void FollowView::OnDisconnected(const absl::Status& cause) {
  Clear();
  *env_.err << "connection lost (" << std::string(cause.message()) << "); the job goes on, reconnecting\n"
            << std::flush;
}

void FollowView::OnReconnected() { *env_.err << "reconnected\n" << std::flush; }

void FollowView::OnGap() { *env_.err << "older events are gone; showing from now on\n" << std::flush; }

void JsonLinesView::Print(const v1::WatchFineTuneJobResponse& message) {
  *env_.out << ToJson(message, true) << "\n" << std::flush;
}

void JsonLinesView::OnSnapshot(const v1::Snapshot& snapshot) {
  v1::WatchFineTuneJobResponse message;
  *message.mutable_snapshot() = snapshot;
  Print(message);
}

void JsonLinesView::OnEvent(const v1::JobEvent& event) {
  v1::WatchFineTuneJobResponse message;
  *message.mutable_event() = event;
  Print(message);
}

void JsonLinesView::OnProgress(const v1::TrainingProgress& progress) {
  v1::WatchFineTuneJobResponse message;
  *message.mutable_progress() = progress;
  Print(message);
}

void JsonLinesView::OnDisconnected(const absl::Status& cause) {
  *env_.err << "connection lost (" << std::string(cause.message()) << "); reconnecting\n" << std::flush;
}

}  // namespace longhaul::cli
