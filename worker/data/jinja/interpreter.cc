#include "worker/data/jinja/interpreter.h"

#include "base/error.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "worker/data/jinja/lexer.h"
#include "worker/data/jinja/parser.h"
#include "worker/data/jinja/text.h"
#include "worker/data/unicode.h"

namespace longhaul::data::jinja {

struct Template::Tree {
  std::string source;
  Block body;
  bool has_generation = false;
};

Template::Template(std::unique_ptr<const Tree> tree) : tree_(std::move(tree)) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;
bool Template::has_generation() const { return tree_->has_generation; }

absl::StatusOr<Template> Template::Parse(std::string_view source) {
  if (static_cast<int64_t>(source.size()) > limits::kMaxTemplateBytes) {
    return TemplateError("the chat template has " + std::to_string(source.size()) + " bytes; the limit is " +
                         std::to_string(limits::kMaxTemplateBytes));
  }
  if (const size_t valid = ValidUtf8Prefix(source); valid != source.size()) {
    return TemplateError("the chat template is not UTF-8 at byte " + std::to_string(valid));
  }
  auto tree = std::make_unique<Tree>();
  tree->source = NormalizeTemplate(source);
  LH_ASSIGN_OR_RETURN(const std::vector<Token> tokens, Tokenize(tree->source));
  Parser parser(tokens);
  LH_ASSIGN_OR_RETURN(tree->body, parser.Parse());
  tree->has_generation = parser.has_generation();
  return Template(std::move(tree));
}

absl::StatusOr<Rendered> Template::Render(const std::vector<std::pair<std::string, Value>>& variables,
                                          const RenderOptions& options) const {
  return Interpreter(options).Run(tree_->body, variables);
}

absl::Status Interpreter::Frame::Check() const {
  const int bound = interpreter_->budget_.limits().max_frames;
  if (interpreter_->frames_ <= bound) return absl::OkStatus();
  return MakeError(absl::StatusCode::kResourceExhausted, "TEMPLATE_LIMIT",
                   "nests deeper than " + std::to_string(bound) + " evaluations");
}

absl::StatusOr<Rendered> Interpreter::Run(const Block& body,
                                          const std::vector<std::pair<std::string, Value>>& variables) {
  Scope root;
  for (const auto& [name, value] : variables) root.names[name] = value;
  out_ = &rendered_.text;
  LH_RETURN_IF_ERROR(Execute(body, &root).status());
  rendered_.steps = budget_.steps();
  rendered_.bytes = budget_.bytes() + output_bytes_;
  return std::move(rendered_);
}

absl::Status Interpreter::Emit(std::string_view text) {
  output_bytes_ += static_cast<int64_t>(text.size());
  if (output_bytes_ > budget_.limits().max_bytes) {
    return MakeError(absl::StatusCode::kResourceExhausted, "TEMPLATE_LIMIT",
                     "writes more than " + std::to_string(budget_.limits().max_bytes) + " bytes");
  }
  out_->append(text);
  return absl::OkStatus();
}

absl::StatusOr<Interpreter::Flow> Interpreter::Capture(const Block& block, Scope* scope, std::string* out) {
  std::string* outer = std::exchange(out_, out);
  auto flow = Execute(block, scope);
  out_ = outer;
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::CaptureFiltered(const Stmt& stmt, Scope* scope, Value* out) {
  std::string text;
  LH_ASSIGN_OR_RETURN(const Flow flow, Capture(stmt.body, scope, &text));
  if (flow != Flow::kNormal) return flow;  // what was captured goes with the block
  LH_ASSIGN_OR_RETURN(*out, NewString(std::move(text), &budget_));
  // Filters wrap each other: the innermost has no operand, the block's text is its value.
  std::vector<const Expr*> chain;
  for (const Expr* filter = stmt.expr.get(); filter != nullptr; filter = filter->operands[0].get()) {
    chain.push_back(filter);
  }
  for (auto it = chain.rbegin(); it != chain.rend(); ++it) {
    LH_ASSIGN_OR_RETURN(*out, EvalFilter(**it, std::move(*out), scope));
  }
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Execute(const Block& block, Scope* scope) {
  for (const auto& stmt : block) {
    auto flow = ExecuteOne(*stmt, scope);
    if (!flow.ok()) return AtLine(flow.status(), stmt->line);
    if (*flow != Flow::kNormal) return *flow;
  }
  return Flow::kNormal;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteOne(const Stmt& stmt, Scope* scope) {
  Frame frame(this);
  LH_RETURN_IF_ERROR(frame.Check());
  LH_RETURN_IF_ERROR(budget_.Step());
  absl::Status status;
  switch (stmt.kind) {
    case StmtKind::kText:
      status = Emit(stmt.text);
      break;
    case StmtKind::kOutput:
      status = ExecuteOutput(stmt, scope);
      break;
    case StmtKind::kIf:
      return ExecuteIf(stmt, scope);
    case StmtKind::kFor:
      return ExecuteFor(stmt, scope);
    case StmtKind::kSet:
      status = ExecuteSet(stmt, scope);
      break;
    case StmtKind::kSetMember:
      status = ExecuteSetMember(stmt, scope);
      break;
    case StmtKind::kSetBlock:
      return ExecuteSetBlock(stmt, scope);
    case StmtKind::kFilter:
      return ExecuteFilter(stmt, scope);
    case StmtKind::kMacro: {
      auto callable = std::make_shared<Callable>();
      callable->type = Callable::Type::kMacro;
      callable->name = stmt.names[0];
      callable->macro = &stmt;
      callable->scope = scope;
      scope->names[stmt.names[0]] = Value::OfCallable(std::move(callable));
      break;
    }
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
    case StmtKind::kGeneration:
      status = ExecuteGeneration(stmt, scope);
      break;
  }
  LH_RETURN_IF_ERROR(status);
  return Flow::kNormal;
}

absl::Status Interpreter::ExecuteOutput(const Stmt& stmt, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value value, Eval(*stmt.expr, scope));
  return EmitValue(value);
}

absl::Status Interpreter::EmitValue(const Value& value) {
  if (value.Is(Kind::kString)) return Emit(value.str());
  LH_ASSIGN_OR_RETURN(const std::string text, ToStr(value, &budget_));
  return Emit(text);
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteIf(const Stmt& stmt, Scope* scope) {
  for (const auto& [condition, body] : stmt.branches) {
    if (condition != nullptr) {
      LH_ASSIGN_OR_RETURN(const Value value, Eval(*condition, scope));
      if (!Truthy(value)) continue;
    }
    return Execute(body, scope);
  }
  return Flow::kNormal;
}

namespace {

absl::Status Assign(const std::vector<std::string>& names, const Value& value, Scope* scope, Budget* budget) {
  if (names.size() == 1) {
    scope->names[names[0]] = value;
    return absl::OkStatus();
  }
  LH_ASSIGN_OR_RETURN(const std::vector<Value> parts, Iterate(value, budget));
  if (parts.size() != names.size()) {
    return TemplateError("cannot unpack " + std::to_string(parts.size()) + " values into " +
                         std::to_string(names.size()) + " names");
  }
  for (size_t i = 0; i < names.size(); ++i) scope->names[names[i]] = parts[i];
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Value>> Interpreter::LoopItems(const Stmt& stmt, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value iterable, Eval(*stmt.expr, scope));
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable, &budget_));
  if (stmt.condition == nullptr) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    Scope pass{scope, {}};
    LH_RETURN_IF_ERROR(Assign(stmt.names, item, &pass, &budget_));
    LH_ASSIGN_OR_RETURN(const Value verdict, Eval(*stmt.condition, &pass));
    if (Truthy(verdict)) kept.push_back(std::move(item));
  }
  return kept;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteFor(const Stmt& stmt, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, LoopItems(stmt, scope));
  if (items.empty()) {
    // Like a pass of the loop, `else` has a frame of its own.
    Scope otherwise{scope, {}};
    return Execute(stmt.otherwise, &otherwise);
  }
  LoopState loop{&items, 0};
  for (const Value& item : items) {
    LH_RETURN_IF_ERROR(budget_.Step());
    Scope pass{scope, {}};
    pass.names["loop"] = Value::Loop(&loop);
    LH_RETURN_IF_ERROR(Assign(stmt.names, item, &pass, &budget_));
    LH_ASSIGN_OR_RETURN(const Flow flow, Execute(stmt.body, &pass));
    if (flow == Flow::kBreak) break;
    ++loop.index0;
  }
  return Flow::kNormal;
}

absl::Status Interpreter::ExecuteSet(const Stmt& stmt, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value value, Eval(*stmt.expr, scope));
  return Assign(stmt.names, value, scope, &budget_);
}

absl::Status Interpreter::ExecuteSetMember(const Stmt& stmt, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr, scope));
  for (Scope* s = scope; s != nullptr; s = s->parent) {
    auto it = s->names.find(stmt.names[0]);
    if (it == s->names.end()) continue;
    if (!it->second.Is(Kind::kNamespace)) break;
    LH_RETURN_IF_ERROR(CheckStorable(value));
    LH_RETURN_IF_ERROR(budget_.Bytes(static_cast<int64_t>(stmt.names[1].size() + sizeof(Value))));
    it->second.mutable_namespace()->Set(stmt.names[1], std::move(value));
    return absl::OkStatus();
  }
  return TemplateError("'" + stmt.names[0] + "' is not a namespace, so its attributes cannot be set");
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteSetBlock(const Stmt& stmt, Scope* scope) {
  Scope inner{scope, {}};
  Value value;
  LH_ASSIGN_OR_RETURN(const Flow flow, CaptureFiltered(stmt, &inner, &value));
  if (flow == Flow::kNormal) scope->names[stmt.names[0]] = std::move(value);
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteFilter(const Stmt& stmt, Scope* scope) {
  Scope inner{scope, {}};
  Value value;
  LH_ASSIGN_OR_RETURN(const Flow flow, CaptureFiltered(stmt, &inner, &value));
  if (flow == Flow::kNormal) LH_RETURN_IF_ERROR(EmitValue(value));
  return flow;
}

absl::Status Interpreter::ExecuteGeneration(const Stmt& stmt, Scope* scope) {
  if (out_ != &rendered_.text) {
    return TemplateError("a generation block inside a macro, a set block or a filter block has no place");
  }
  const auto begin = static_cast<int64_t>(rendered_.text.size());
  const size_t before = rendered_.generation_spans.size();
  Scope inner{scope, {}};
  LH_RETURN_IF_ERROR(Execute(stmt.body, &inner).status());
  if (rendered_.generation_spans.size() != before) return TemplateError("a generation block inside another");
  rendered_.generation_spans.emplace_back(begin, static_cast<int64_t>(rendered_.text.size()));
  return absl::OkStatus();
}

}  // namespace longhaul::data::jinja
