#include "worker/attempt/attempt_dir.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "base/env.h"
#include "base/errno_status.h"
#include "base/error.h"
#include "base/failpoints.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace longhaul::attempt {
namespace {

constexpr std::string_view kPartial = ".partial";
constexpr int64_t kMaxNoteBytes = 1024;

absl::Status Unparsable(const std::string& path, const std::string& why) {
  return MakeError(absl::StatusCode::kDataLoss, "ATTEMPT_DIR", path + " cannot be parsed: " + why);
}

// The first complaint of the text parser, with its line, instead of a log line.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column, const std::string& message) override {
    if (text.empty())
      text = "line " + std::to_string(line + 1) + ", column " + std::to_string(column + 1) + ": " + message;
  }
  std::string text;
};

template <typename Message>
absl::StatusOr<Message> ReadText(const std::string& path) {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits::kMaxAttemptSpecBytes));
  google::protobuf::TextFormat::Parser parser;
  FirstError error;
  parser.RecordErrorsTo(&error);
  Message message;
  if (!parser.ParseFromString(text, &message)) return Unparsable(path, error.text);
  return message;
}

template <typename Message>
std::string ToText(const Message& message) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(message, &text);
  return text;
}

// A rename without fsync: readers see the old or the new file, and the kernel may write it when it likes.
absl::Status ReplaceUnsynced(const std::string& path, const std::string& bytes) {
  const std::string temporary = path + ".new";
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (fd.get() < 0) return ErrnoStatus("create", temporary, errno);
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("write", temporary, errno);
    done += static_cast<size_t>(n);
  }
  if (!fd.Reset()) return ErrnoStatus("close", temporary, errno);
  if (::rename(temporary.c_str(), path.c_str()) != 0) return ErrnoStatus("rename", temporary, errno);
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateFileName(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  if (name.empty() || name.size() > limits::kMaxFileNameBytes || name.front() == '.' ||
      !std::all_of(name.begin(), name.end(), allowed)) {
    std::string shown(name.substr(0, 64));
    std::replace_if(
        shown.begin(), shown.end(), [](char c) { return c < 0x20 || c == 0x7f; }, '?');
    return MakeError(absl::StatusCode::kInvalidArgument, "FILE_NAME",
                     "file name \"" + shown + "\" is refused; a name is 1 to " +
                         std::to_string(limits::kMaxFileNameBytes) +
                         " characters of A-Z a-z 0-9 . _ - and does not start with a dot");
  }
  return absl::OkStatus();
}

const std::string& BootId() {
  static const std::string id = [] {
    std::string text = ReadFile("/proc/sys/kernel/random/boot_id", 256).value_or("");
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }();
  return id;
}

absl::Status AttemptDir::Create() const {
  for (const std::string& dir : {path_, InputsDir(), CheckpointsDir(), ArtifactDir()})
    LH_RETURN_IF_ERROR(CreateDirs(dir));
  return absl::OkStatus();
}

absl::Status AttemptDir::Remove() const {
  if (!FileExists(path_)) return absl::OkStatus();
  LH_RETURN_IF_ERROR(RemoveFile(SpecPath()));
  LH_RETURN_IF_ERROR(SyncDir(path_));
  LH_RETURN_IF_ERROR(Failpoint("agent_spec_removed"));
  return RemoveTree(path_);
}

bool AttemptDir::WritesCheckpoint() const {
  const auto names = ListDir(CheckpointsDir());
  return names.ok() && std::any_of(names->begin(), names->end(), [](const std::string& name) {
           return name.size() > kPartial.size() &&
                  name.compare(name.size() - kPartial.size(), kPartial.size(), kPartial) == 0;
         });
}

absl::Status AttemptDir::WriteSpec(const v1::AttemptSpec& spec) const {
  return WriteFileAtomic(SpecPath(), ToText(spec));
}

absl::StatusOr<v1::AttemptSpec> AttemptDir::ReadSpec() const { return ReadText<v1::AttemptSpec>(SpecPath()); }

absl::Status AttemptDir::WriteLease(const v1::LeaseFile& lease) const {
  return ReplaceUnsynced(LeasePath(), ToText(lease));
}

absl::StatusOr<v1::LeaseFile> AttemptDir::ReadLease() const { return ReadText<v1::LeaseFile>(LeasePath()); }

absl::Status AttemptDir::WritePid(const ProcessId& id) const {
  return WriteFileAtomic(PidPath(), std::to_string(id.pid) + " " + std::to_string(id.start_ticks) + "\n");
}

absl::StatusOr<ProcessId> AttemptDir::ReadPid() const {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(PidPath(), 128));
  int pid = 0;
  uint64_t start_ticks = 0;
  char newline = 0;
  if (std::sscanf(text.c_str(), "%d %" SCNu64 "%c", &pid, &start_ticks, &newline) != 3 || newline != '\n' || pid <= 0) {
    return Unparsable(PidPath(), "expected \"<pid> <start ticks>\"");
  }
  return ProcessId{pid, start_ticks};
}

absl::Status AttemptDir::WriteAgentNote(const AgentNote& note) const {
  std::string text;
  const auto add = [&text](const char* name, int64_t value) {
    text += (text.empty() ? "" : " ") + std::string(name) + " " + std::to_string(value);
  };
  add("committed_step", note.committed_step);
  add("artifact_committed", note.artifact_committed ? 1 : 0);
  add("log_missing_bytes", note.log_missing_bytes);
  add("events_bytes", note.events_bytes);
  add("started", note.started ? 1 : 0);
  add("held", note.held ? 1 : 0);
  add("finalizing", note.finalizing ? 1 : 0);
  add("step_ms", note.step_ms);
  add("host_bytes_peak", note.host_bytes_peak);
  add("device_bytes_peak", note.device_bytes_peak);
  return WriteFileAtomic(AgentNotePath(), text + "\n");
}

// An agent of before wrote the first three alone.
absl::StatusOr<AgentNote> AttemptDir::ReadAgentNote() const {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadFile(AgentNotePath(), kMaxNoteBytes));
  AgentNote note;
  int committed = 0, started = 0, held = 0, finalizing = 0;
  const int found = std::sscanf(text.c_str(),
                                "committed_step %" SCNd64 " artifact_committed %d log_missing_bytes %" SCNd64
                                " events_bytes %" SCNd64 " started %d held %d finalizing %d step_ms %" SCNd64
                                " host_bytes_peak %" SCNd64 " device_bytes_peak %" SCNd64,
                                &note.committed_step, &committed, &note.log_missing_bytes, &note.events_bytes, &started,
                                &held, &finalizing, &note.step_ms, &note.host_bytes_peak, &note.device_bytes_peak);
  if ((found != 3 && found != 10) || note.committed_step < 0 || note.events_bytes < 0) {
    return Unparsable(AgentNotePath(),
                      "expected \"committed_step <n> artifact_committed <0|1> log_missing_bytes <n>\" and, of newer "
                      "agents, what the events have said");
  }
  note.artifact_committed = committed != 0;
  note.started = started != 0;
  note.held = held != 0;
  note.finalizing = finalizing != 0;
  return note;
}

}  // namespace longhaul::attempt
