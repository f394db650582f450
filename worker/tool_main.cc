// longhaul-tool: the engine's eyes and voice without a server. data preview, tokenize, chat, model-inspect,
// export-base. `longhaul` becomes it for data preview and chat.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/env.h"
#include "base/error.h"
#include "base/format.h"
#include "base/limits.h"
#include "base/program/command_line.h"
#include "base/program/error_text.h"
#include "base/status_macros.h"
#include "kernels/exec.h"
#include "model/memory_plan.h"
#include "nlohmann/json.hpp"
#include "worker/data/preview.h"
#include "worker/data/tokenizer_json.h"
#include "worker/formats/gguf.h"
#include "worker/formats/peft_adapter.h"
#include "worker/train/export_base.h"
#include "worker/train/generate.h"
#include "worker/train/weight_source.h"
#include "worker/trainer/inputs.h"

namespace longhaul {
namespace {

struct Flags {
  std::string model;
  std::string output = "text";
  // data preview
  std::string data;
  int64_t count = 3;
  int64_t max_sequence_length = 2048;
  std::string format = "auto";
  bool all_tokens = false;
  bool ids = false;
  // chat
  std::string adapter;
  std::string prompt;
  std::string system;
  std::string base = "as_stored";
  int64_t max_tokens = 256;
  // tokenize
  std::string input;
  bool add_special = false;
  // export-base
  std::string compute = "f32";
  std::string out;
};

bool ColorWanted() { return ::isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr; }

absl::StatusOr<trainer::Model> OpenModel(const Flags& flags) {
  if (FileExists(flags.model)) return trainer::OpenModel(flags.model);
  return WithAdvice(
      MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                "--model is '" + flags.model + "'; there is no such file or folder"),
      "give the path of a .gguf file or of a model folder: the names that `longhaul workers` shows are no "
      "paths");
}

absl::Status PreviewData(const Flags& flags) {
  LH_ASSIGN_OR_RETURN(const trainer::Model model, OpenModel(flags));
  data::DatasetOptions options;
  options.max_sequence_length = flags.max_sequence_length;
  options.train_on_responses_only = !flags.all_tokens;
  if (flags.format == "messages") options.format = data::LineFormat::kMessages;
  if (flags.format == "text") options.format = data::LineFormat::kText;
  LH_ASSIGN_OR_RETURN(const data::Json preview,
                      data::PreviewDataset(flags.data, flags.count, model.tokenizer,
                                           model.chat.has_value() ? &*model.chat : nullptr, options));
  if (flags.output == "json") {
    std::cout << preview.dump(2, ' ', false, data::Json::error_handler_t::replace) << "\n";
  } else {
    std::cout << data::PreviewText(preview, model.tokenizer, {.color = ColorWanted(), .ids = flags.ids});
  }
  if (preview["report"]["examples"] != 0) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_DATASET",
                   flags.data + " has no example that can be trained on");
}

// A .gguf file or a folder with tokenizer.json; no weights are needed.
absl::StatusOr<data::Tokenizer> OpenTokenizer(const Flags& flags) {
  const std::string& path = flags.model;
  if (IsDirectory(path) && FileExists(JoinPath(path, "tokenizer.json"))) {
    return data::Tokenizer::FromHuggingFaceFolder(path);
  }
  if (IsDirectory(path)) {
    LH_ASSIGN_OR_RETURN(trainer::Model model, OpenModel(flags));
    return std::move(model.tokenizer);
  }
  LH_ASSIGN_OR_RETURN(const formats::GgufFile file, formats::GgufFile::Open(path));
  return data::Tokenizer::FromGguf(file);
}

// Each line of the input is a JSON string; each line of the output the JSON array of its ids.
absl::Status Tokenize(const Flags& flags) {
  LH_ASSIGN_OR_RETURN(const data::Tokenizer tokenizer, OpenTokenizer(flags));
  LH_ASSIGN_OR_RETURN(const MappedFile input, MappedFile::Open(flags.input));
  data::EncodeOptions options;
  options.add_special = flags.add_special;
  data::BpeScratch scratch;
  std::string_view rest = input.view();
  for (int64_t line = 1; !rest.empty(); ++line) {
    const size_t end = rest.find('\n');
    const std::string at = flags.input + " line " + std::to_string(line);
    const auto text = data::ParseJson(rest.substr(0, end), /*max_values=*/1);
    if (!text.ok() || !text->is_string()) return InvalidField(at, "must be a JSON string");
    const auto ids = tokenizer.Encode(text->get_ref<const std::string&>(), options, &scratch);
    if (!ids.ok()) return Annotate(ids.status(), at);
    std::cout << data::Json(*ids).dump() << "\n";
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  return absl::OkStatus();
}

absl::Status ExportBase(const Flags& flags) {
  LH_ASSIGN_OR_RETURN(const trainer::Model model, OpenModel(flags));
  train::ExportBaseOptions options;
  options.base = flags.base == "nf4" ? BaseWeights::kNf4 : BaseWeights::kAsStored;
  options.compute = flags.compute == "bf16" ? ComputeType::kBF16 : ComputeType::kF32;
  options.threads = HostCpuThreads();
  // The tokenizer first: a folder with a config.json is whole.
  LH_RETURN_IF_ERROR(CreateDirs(flags.out));
  LH_RETURN_IF_ERROR(data::ExportTokenizer(model.source, flags.out));
  LH_RETURN_IF_ERROR(train::ExportBaseWeights(model.source, options, flags.out));
  std::cout << flags.out << "\n";
  return absl::OkStatus();
}

DeviceFacts ThisMachine() {
  const kernels::CpuFacts cpu = kernels::ProbeCpu();
  DeviceFacts facts;
  facts.device_class = "cpu-" + cpu.isa;
  facts.isa = cpu.isa;
  facts.has_bf16 = cpu.has_bf16;
  facts.cpu_threads = HostCpuThreads();
  facts.host_bytes = HostMemAvailableBytes();
  return facts;
}

// The tokens that end an answer: the tokenizer's own and the ends of a turn that chat templates use.
std::vector<int32_t> EndTokens(const data::Tokenizer& tokenizer) {
  std::vector<int32_t> ends;
  if (tokenizer.eos_id() >= 0) ends.push_back(tokenizer.eos_id());
  for (const char* text : {"<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>"}) {
    const int32_t id = tokenizer.TokenToId(text);
    if (id >= 0 && tokenizer.IsSpecial(id)) ends.push_back(id);
  }
  return ends;
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const Flags& flags, const trainer::Model& model) {
  data::EncodeOptions options;
  if (!model.chat.has_value()) {
    options.add_special = true;
    options.parse_special = false;
    return model.tokenizer.Encode(flags.system + flags.prompt, options);
  }
  data::Json messages = data::Json::array();
  if (!flags.system.empty()) messages.push_back({{"role", "system"}, {"content", flags.system}});
  messages.push_back({{"role", "user"}, {"content", flags.prompt}});
  LH_ASSIGN_OR_RETURN(const std::string text,
                      model.chat->Render(messages, data::Json(), /*add_generation_prompt=*/true));
  return model.tokenizer.Encode(text, options);
}

absl::StatusOr<MemoryPlan> PlanChat(const Flags& flags, const ModelShape& shape, const formats::LoadedAdapter* adapter,
                                    int64_t tokens) {
  const DeviceFacts facts = ThisMachine();
  TrainShape train;
  train.compute = facts.has_bf16 ? ComputeType::kBF16 : ComputeType::kF32;
  train.base = flags.base == "nf4" ? BaseWeights::kNf4 : BaseWeights::kAsStored;
  train.sequence_length = tokens;
  train.lora_targets = 0;
  if (adapter != nullptr) {
    train.lora_rank = adapter->config.r;
    LH_ASSIGN_OR_RETURN(train.lora_targets, LoraTargetsFromNames(adapter->config.target_modules));
  }
  return MakeGeneratePlan(shape, train, facts);
}

absl::Status Chat(const Flags& flags) {
  LH_ASSIGN_OR_RETURN(const trainer::Model model, OpenModel(flags));
  const ModelShape& shape = model.source.shape();
  formats::LoadedAdapter adapter;
  const bool has_adapter = !flags.adapter.empty();
  if (has_adapter) {
    if (!FileExists(JoinPath(flags.adapter, "adapter_config.json"))) {
      return WithAdvice(MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                                  "--adapter is '" + flags.adapter + "'; it has no adapter_config.json"),
                        "give the folder that `longhaul download` made");
    }
    LH_ASSIGN_OR_RETURN(adapter, formats::ReadAdapter(flags.adapter, shape));
  }
  LH_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, EncodePrompt(flags, model));
  const int64_t tokens = static_cast<int64_t>(prompt.size()) + flags.max_tokens;
  if (tokens > shape.max_position_embeddings) {
    return InvalidField("--max-tokens", "is " + std::to_string(flags.max_tokens) + " after a prompt of " +
                                            std::to_string(prompt.size()) + " tokens; the model reaches " +
                                            std::to_string(shape.max_position_embeddings));
  }
  LH_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanChat(flags, shape, has_adapter ? &adapter : nullptr, tokens));
  const train::ModelWeightSource weights(model.source);
  LH_ASSIGN_OR_RETURN(const std::unique_ptr<train::Generator> generator,
                      train::Generator::Create(plan, weights, has_adapter ? &adapter : nullptr));
  const bool stream = flags.output != "json";
  data::StreamDecoder decoder(&model.tokenizer);
  const auto on_token = [&](int32_t id) {
    if (stream) std::cout << decoder.Append(id) << std::flush;
    return true;
  };
  LH_ASSIGN_OR_RETURN(const std::vector<int32_t> answer,
                      generator->Generate(prompt, flags.max_tokens, EndTokens(model.tokenizer), on_token));
  if (stream) {
    std::cout << decoder.Flush() << "\n";
    return absl::OkStatus();
  }
  const nlohmann::ordered_json out = {{"answer", model.tokenizer.Decode(answer, /*skip_special=*/true)},
                                      {"prompt_tokens", prompt.size()},
                                      {"answer_tokens", answer.size()}};
  std::cout << out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
  return absl::OkStatus();
}

absl::Status InspectModel(const Flags& flags) {
  LH_ASSIGN_OR_RETURN(const trainer::Model model, OpenModel(flags));
  std::map<std::string, int64_t> bytes;
  for (const auto& tensor : model.source.tensors()) bytes[formats::StorageTypeName(tensor.type)] += tensor.bytes;
  LH_ASSIGN_OR_RETURN(const std::string digest, model.source.ComputeDigest());
  const nlohmann::json shape = ModelShapeToJson(model.source.shape());
  const nlohmann::ordered_json out = {{"path", flags.model},
                                      {"digest", digest},
                                      {"bytes", model.source.bytes()},
                                      {"parameters", model.source.shape().TotalParams()},
                                      {"shape", shape},
                                      {"bytes_by_type", bytes},
                                      {"tokenizer",
                                       {{"vocabulary", model.tokenizer.vocab_size()},
                                        {"digest", model.tokenizer.digest()},
                                        {"bos", model.tokenizer.TokenText(model.tokenizer.bos_id())},
                                        {"eos", model.tokenizer.TokenText(model.tokenizer.eos_id())}}},
                                      {"chat_template", model.chat.has_value()}};
  if (flags.output == "json") {
    std::cout << out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
    return absl::OkStatus();
  }
  std::cout << flags.model << "\n  digest      " << digest << "\n  size        " << FormatBytes(model.source.bytes())
            << "\n  parameters  " << FormatCount(model.source.shape().TotalParams()) << "\n";
  for (const auto& [type, size] : bytes)
    std::cout << "  " << type << std::string(12 - std::min<size_t>(11, type.size()), ' ') << FormatBytes(size) << "\n";
  for (const auto& [key, value] : shape.items()) std::cout << "  " << key << " = " << value.dump() << "\n";
  std::cout << "  tokenizer   " << FormatCount(model.tokenizer.vocab_size()) << " tokens, "
            << (model.chat.has_value() ? "with" : "without") << " a chat template\n";
  return absl::OkStatus();
}

using Command = std::function<absl::Status(const Flags&)>;
constexpr char kToolName[] = "longhaul-tool";
constexpr char kModelHelp[] = "A .gguf file or a model folder";

CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& about, Command run, Command& chosen) {
  CLI::App* command = app.add_subcommand(name, about);
  command->callback([&chosen, run = std::move(run)] { chosen = run; });
  return command;
}

void AddOutput(CLI::App* command, Flags& flags) {
  command->add_option("-o,--output", flags.output, "text or json")->check(CLI::IsMember({"text", "json"}));
}

void AddDataCommands(CLI::App& app, Flags& flags, Command& chosen) {
  CLI::App* data = app.add_subcommand("data", "Looks at a dataset before it is trained on");
  data->require_subcommand(1);
  CLI::App* preview = AddCommand(*data, "preview", "Examples as the trainer sees them", PreviewData, chosen);
  AddOutput(preview, flags);
  preview->add_option("--model", flags.model, kModelHelp)->required();
  preview->add_option("--data", flags.data, "JSONL file")->required();
  preview->add_option("-n,--count", flags.count, "Examples to show")
      ->check(CLI::Range(0, 10'000))
      ->capture_default_str();
  preview->add_option("--max-sequence-length,--max-seq-len", flags.max_sequence_length, "Tokens that an example keeps")
      ->check(CLI::Range(int64_t{2}, limits::kMaxSequenceLength))
      ->capture_default_str();
  preview->add_option("--format", flags.format, "auto, messages or text")
      ->check(CLI::IsMember({"auto", "messages", "text"}));
  preview->add_flag("--all-tokens", flags.all_tokens, "Train on every token, not on answers only");
  preview->add_flag("--ids", flags.ids, "Every token on a line: position, id, whether it trains, text");

  CLI::App* tokenize = AddCommand(app, "tokenize", "Token ids of texts, as JSON", Tokenize, chosen);
  tokenize->add_option("--model", flags.model, "A .gguf file or a folder with tokenizer.json")->required();
  tokenize->add_option("--input", flags.input, "File with a JSON string on each line")->required();
  tokenize->add_flag("--add-special", flags.add_special, "Add what the tokenizer adds around a text, as BOS");
}

void AddModelCommands(CLI::App& app, Flags& flags, Command& chosen) {
  CLI::App* chat = AddCommand(app, "chat", "An answer, the likeliest token each time", Chat, chosen);
  AddOutput(chat, flags);
  chat->add_option("--model", flags.model, kModelHelp)->required();
  chat->add_option("--adapter", flags.adapter, "Folder of a LoRA adapter");
  chat->add_option("--prompt", flags.prompt, "What the user says")->required();
  chat->add_option("--system", flags.system, "What the system says first");
  chat->add_option("--max-tokens", flags.max_tokens, "Longest answer")
      ->check(CLI::Range(int64_t{1}, limits::kMaxSequenceLength));
  chat->add_option("--base", flags.base, "Base weights: as_stored or nf4")->check(CLI::IsMember({"as_stored", "nf4"}));

  CLI::App* inspect = AddCommand(app, "model-inspect", "What a model is and how it is stored", InspectModel, chosen);
  AddOutput(inspect, flags);
  inspect->add_option("model", flags.model, kModelHelp)->required();

  CLI::App* export_base = AddCommand(
      app, "export-base", "The weights that training multiplies with, as a Hugging Face folder", ExportBase, chosen);
  export_base->add_option("--model", flags.model, kModelHelp)->required();
  export_base->add_option("--base", flags.base, "Base weights: as_stored or nf4")
      ->check(CLI::IsMember({"as_stored", "nf4"}))
      ->capture_default_str();
  export_base->add_option("--compute", flags.compute, "Round to what a run multiplies in: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  export_base->add_option("--out", flags.out, "New folder")->required();
}

int Main(int argc, char** argv) {
  Flags flags;
  Command chosen;
  const std::string called = std::filesystem::path(argv[0]).filename().string();
  CLI::App app("longhaul-tool: looks at data and models, and talks to them", called == "longhaul" ? called : kToolName);
  app.set_version_flag("--version", LONGHAUL_VERSION);
  app.require_subcommand(1);
  AddDataCommands(app, flags, chosen);
  AddModelCommands(app, flags, chosen);
  if (const std::optional<int> code = program::ParseCommandLine(app, argc, argv)) return *code;
  const absl::Status status = program::LocalFileError(chosen(flags));
  if (status.ok()) return program::FlushOutput(app.get_name()) ? program::kOk : program::kInternal;
  std::cerr << program::DescribeError(app.get_name(), status, "--help of the command lists its flags");
  return program::ExitCodeFor(status);
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) { return longhaul::Main(argc, argv); }
