#include "clients/cli/job_flags.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/error.h"
#include "longhaul/v1/job.pb.h"

namespace longhaul::cli {
namespace {

using google::protobuf::FieldDescriptor;

struct Spelling {
  const char* field;
  const char* aliases;  // besides the field's own name with dashes
  const char* help;
};

// Short names and help, with unit and default. JobFlags.EveryFlagSaysWhatItIsInASentence holds a new field to it.
constexpr Spelling kSpellings[] = {
    {"lora_rank", "--rank", "rank of the adapter (default 16)"},
    {"lora_alpha", "--alpha", "numerator of the adapter's scale, alpha / rank (default 2 x rank)"},
    {"lora_dropout", "", "part of the adapter's inputs that a step drops, 0 to below 1 (default 0)"},
    {"use_rslora", "", "scale the adapter by alpha / sqrt(rank) instead of alpha / rank (default false)"},
    {"target_modules", "--targets", "linears that get an adapter, comma-separated (default all seven)"},
    {"learning_rate", "--lr", "peak learning rate (default 2e-4)"},
    {"schedule", "", "of the learning rate after its warm-up: linear, cosine or constant (default linear)"},
    {"warmup_ratio", "", "part of all updates that warm up, 0 to 1 (default 0.03; ignored with --warmup-steps)"},
    {"warmup_steps", "", "updates that warm up (default by --warmup-ratio)"},
    {"weight_decay", "", "AdamW's decoupled weight decay of the adapter (default 0)"},
    {"adam_beta1", "", "decay of AdamW's mean of the gradient (default 0.9)"},
    {"adam_beta2", "", "decay of AdamW's mean of the squared gradient (default 0.999)"},
    {"adam_epsilon", "", "added to AdamW's denominator (default 1e-8)"},
    {"max_grad_norm", "", "the gradient's norm is cut to this; 0 = never (default 1)"},
    {"epochs", "", "passes over the data (default 1; ignored with --steps)"},
    {"max_steps", "--steps", "optimizer updates (default by --epochs)"},
    {"batch_size", "", "sequences a micro-batch (default 1)"},
    {"gradient_accumulation_steps", "--accumulation", "micro-batches an update (default 1)"},
    {"max_sequence_length", "--max-seq-len", "tokens a sequence (default min(2048, the model's window))"},
    {"packing", "", "pack short examples into one sequence; none sees another (default true)"},
    {"seed", "", "of the data's order, the dropout and the adapter's first values (default 42)"},
    {"eval_examples", "", "examples held out of the dataset (default 0)"},
    {"eval_every_steps", "", "updates between two evaluations; 0 = before the first and after the last (default 0)"},
    {"checkpoint_every_steps", "", "updates between two checkpoints (default 20)"},
    {"base_storage", "", "how the frozen base is held: nf4 or as_stored (default as_stored of a GGUF, nf4 otherwise)"},
    {"compute_type", "", "of activations and GEMMs: f32, bf16 or fp8 (Hopper GPUs) (default the fastest but for fp8)"},
    {"train_on_responses_only", "", "of messages, only the assistant's tokens count in the loss (default true)"},
    {"allow_long_positions", "", "permit sequences past the model's trained window (default false)"},
    {"deterministic", "",
     "the same bits in every run: a CPU always gives them, a GPU, slower, with this (default false)"},
    {"allow_nonidentical_resume", "",
     "resume where another device or plan would change the last bits, too (default false: such a resume fails)"},
    {"device_share", "", "of a device's memory: whole, the fastest plan; fit, the smallest; bytes (default whole)"},
    {"device_share_bytes", "", "bytes that the plan may use, with --device-share bytes"},
    {"cpu_threads", "", "threads of a CPU device (default all that it has)"},
    {"limit", "", "failed attempts before the job fails (default 3)"},
    {"backoff_seconds", "", "seconds before the first retry, doubled each time up to an hour (default 10)"},
};

std::string Dashed(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

const Spelling* FindSpelling(const std::string& field) {
  for (const Spelling& spelling : kSpellings) {
    if (field == spelling.field) return &spelling;
  }
  return nullptr;
}

const char* TypeName(const FieldDescriptor* field) {
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "NUMBER";
    case FieldDescriptor::CPPTYPE_ENUM:
    case FieldDescriptor::CPPTYPE_STRING:
      return "NAME";
    default:
      return "N";
  }
}

YAML::Node Child(YAML::Node parent, const std::string& key) {
  if (!parent[key] || !parent[key].IsMap()) parent[key] = YAML::Node(YAML::NodeType::Map);
  return parent[key];
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParsePairs(const std::string& flag,
                                                              const std::vector<std::string>& pairs) {
  std::map<std::string, std::string> values;
  for (const std::string& pair : pairs) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) return InvalidField(flag, "is '" + pair + "'; must be KEY=VALUE");
    const std::string key = pair.substr(0, equals);
    if (!values.emplace(key, pair.substr(equals + 1)).second) return InvalidField(flag, "gives '" + key + "' twice");
  }
  return values;
}

JobFlags::Flag& JobFlags::Add(std::vector<std::string> path, Kind kind) {
  flags_.emplace_back();
  flags_.back().path = std::move(path);
  flags_.back().kind = kind;
  return flags_.back();
}

void JobFlags::RegisterMessage(CLI::App& command, const google::protobuf::Descriptor* type,
                               const std::vector<std::string>& path, const std::string& prefix,
                               const std::string& group) {
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) continue;
    std::vector<std::string> field_path = path;
    field_path.push_back(field->name());
    Flag& flag = Add(field_path, field->is_repeated() ? Kind::kList : Kind::kScalar);
    const std::string long_name = prefix + Dashed(field->name());
    const Spelling* spelling = FindSpelling(field->name());
    const std::string help = spelling != nullptr ? spelling->help : "";
    std::string names = long_name;
    if (spelling != nullptr && spelling->aliases[0] != '\0') names += std::string(",") + spelling->aliases;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
      flag.option = command.add_flag(names + ",!--no-" + Dashed(field->name()), flag.value, help);
    } else if (field->is_repeated()) {
      flag.option = command.add_option(names, flag.values, help)->delimiter(',')->type_name("NAMES");
    } else {
      flag.option = command.add_option(names, flag.value, help)->type_name(TypeName(field));
    }
    flag.option->group(group);
  }
}

void JobFlags::Register(CLI::App& command) {
  const auto file = [&](std::vector<std::string> path, const std::string& name, const std::string& help) {
    Flag& flag = Add(std::move(path), Kind::kFile);
    flag.option = command.add_option(name, flag.value, help)->type_name("FILE")->group("Job");
  };
  const auto scalar = [&](std::vector<std::string> path, const std::string& name, const std::string& help) {
    Flag& flag = Add(std::move(path), Kind::kScalar);
    flag.option = command.add_option(name, flag.value, help)->group("Job");
  };
  const auto pairs = [&](std::vector<std::string> path, const std::string& name, const std::string& help) {
    Flag& flag = Add(std::move(path), Kind::kPairs);
    flag.option = command.add_option(name, flag.values, help)
                      ->type_name("KEY=VALUE")
                      ->group("Job")
                      ->expected(1)
                      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  };
  scalar({"spec", "model"}, "--model", "a model that some worker has (`longhaul workers -o wide`)");
  file({"spec", "dataset"}, "--data", "JSONL of {\"messages\": [...]} or {\"text\": \"...\"}");
  file({"spec", "eval_dataset"}, "--eval-data",
       "JSONL of examples that only evaluations see (default none; --eval-examples holds some out of --data)");
  scalar({"spec", "dataset", "format"}, "--data-format", "messages or text (default: told from the first good line)");
  scalar({"spec", "eval_dataset", "format"}, "--eval-data-format",
         "of --eval-data: messages or text (default: told from its first good line)");
  scalar({"spec", "priority"}, "--priority", "class in the queue: low, normal or high (default normal)");
  scalar({"spec", "deadline_seconds"}, "--deadline-seconds",
         "seconds of wall time from submit, pauses included, after which the job fails; 0 = none (default 0)");
  scalar({"suffix"}, "--name,--suffix", "a name for people, shown beside the id (default none)");
  scalar({"project"}, "--project", "the project that the job counts for (default the caller's)");
  pairs({"labels"}, "--label", "a label that `longhaul list --label` finds; may be repeated");
  pairs({"metadata"}, "--metadata", "kept with the job and shown, not searched; may be repeated");
  RegisterMessage(command, v1::Hyperparameters::descriptor(), {"spec", "hyperparameters"}, "--", "Hyperparameters");
  RegisterMessage(command, v1::Resources::descriptor(), {"spec", "resources"}, "--", "Resources");
  RegisterMessage(command, v1::RetryPolicy::descriptor(), {"spec", "retry"}, "--retry-", "Retry");
}

absl::Status JobFlags::Apply(YAML::Node& root) const {
  for (const Flag& flag : flags_) {
    if (flag.option->count() == 0) continue;
    YAML::Node node = root;
    for (size_t i = 0; i + 1 < flag.path.size(); ++i) node.reset(Child(node, flag.path[i]));
    const std::string& key = flag.path.back();
    switch (flag.kind) {
      case Kind::kScalar:
        node[key] = flag.value;
        break;
      case Kind::kList:
        node[key] = flag.values;
        break;
      case Kind::kFile: {
        YAML::Node dataset(YAML::NodeType::Map);
        dataset["file_name"] = flag.value;
        node[key] = dataset;
        break;
      }
      case Kind::kPairs: {
        const auto pairs = ParsePairs(flag.option->get_name(), flag.values);
        if (!pairs.ok()) return pairs.status();
        for (const auto& [name, value] : *pairs) Child(node, key)[name] = value;
        break;
      }
    }
  }
  return absl::OkStatus();
}

// A part of what one flag gives, spec.dataset.sha256 of --data, and an entry of a list have that flag's name.
std::string JobFlags::NameOf(const std::string& field) const {
  const Flag* best = nullptr;
  size_t best_length = 0;
  for (const Flag& flag : flags_) {
    const std::string path = absl::StrJoin(flag.path, ".");
    if (field.compare(0, path.size(), path) != 0 || path.size() < best_length) continue;
    if (field.size() > path.size() && field[path.size()] != '.' && field[path.size()] != '[') continue;
    best = &flag;
    best_length = path.size();
  }
  return best == nullptr ? field : field + " (" + best->option->get_name() + ")";
}

absl::Status JobFlags::NameFlags(const absl::Status& status) const {
  std::vector<FieldViolation> violations = ErrorViolations(status);
  std::string message(status.message());
  bool named = false;
  size_t at = 0;  // violations are told in their order
  for (FieldViolation& violation : violations) {
    const std::string with_flag = NameOf(violation.field);
    if (with_flag == violation.field) continue;
    named = true;
    if (const size_t found = message.find(violation.field + " ", at); found != std::string::npos) {
      message.replace(found, violation.field.size(), with_flag);
      at = found + with_flag.size();
    }
    violation.field = with_flag;
  }
  if (const size_t colon = message.find(": "); violations.empty() && colon != std::string::npos) {
    const std::string with_flag = NameOf(message.substr(0, colon));  // "spec.dataset: cannot stat ..."
    named = with_flag.size() > colon;
    message.replace(0, colon, with_flag);
  }
  if (!named) return status;
  const absl::Status renamed = MakeError(status.code(), ErrorReason(status), message, std::move(violations));
  const std::string advice = ErrorAdvice(status);
  return advice.empty() ? renamed : WithAdvice(renamed, advice);
}

}  // namespace longhaul::cli
