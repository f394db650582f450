// Runs a parsed template: statements in interpreter.cc, expressions in expressions.cc, calls in calls.cc.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/ast.h"
#include "worker/data/jinja/ops.h"
#include "worker/data/jinja/template.h"

namespace longhaul::data::jinja {

// Names of one frame. `set` writes here; a loop's pass and a macro's call have a frame of their own, `if` has not.
struct Scope {
  Scope* parent = nullptr;
  std::unordered_map<std::string_view, Value> names;  // keys live in the tree or in the caller's variables
};

// One rendering. Not thread-safe; used once.
class Interpreter {
 public:
  explicit Interpreter(const RenderOptions& options) : options_(options), budget_(options.limits) {}
  absl::StatusOr<Rendered> Run(const Block& body, const std::vector<std::pair<std::string, Value>>& variables);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class Frame;

  absl::StatusOr<Flow> Execute(const Block& block, Scope* scope);
  absl::StatusOr<Flow> ExecuteOne(const Stmt& stmt, Scope* scope);
  absl::Status ExecuteOutput(const Stmt& stmt, Scope* scope);
  absl::StatusOr<Flow> ExecuteIf(const Stmt& stmt, Scope* scope);
  absl::StatusOr<Flow> ExecuteFor(const Stmt& stmt, Scope* scope);
  absl::StatusOr<std::vector<Value>> LoopItems(const Stmt& stmt, Scope* scope);
  absl::Status ExecuteSet(const Stmt& stmt, Scope* scope);
  absl::Status ExecuteSetMember(const Stmt& stmt, Scope* scope);
  absl::StatusOr<Flow> ExecuteSetBlock(const Stmt& stmt, Scope* scope);
  absl::StatusOr<Flow> ExecuteFilter(const Stmt& stmt, Scope* scope);
  absl::Status ExecuteGeneration(const Stmt& stmt, Scope* scope);
  absl::Status Emit(std::string_view text);
  absl::Status EmitValue(const Value& value);  // its str()
  // Appends the output of `block` to *out, apart from the main output. A break or continue ends it early.
  absl::StatusOr<Flow> Capture(const Block& block, Scope* scope, std::string* out);
  // The body of a set or filter block, run in `scope`, through the filters of stmt.expr.
  absl::StatusOr<Flow> CaptureFiltered(const Stmt& stmt, Scope* scope, Value* out);

  absl::StatusOr<Value> Eval(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalKind(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalName(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalItems(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalDict(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalSlice(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalCompare(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalLogic(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalFilter(const Expr& expr, Value value, Scope* scope);
  absl::StatusOr<Value> EvalTest(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalBinary(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalCall(const Expr& expr, Scope* scope);
  absl::StatusOr<Arguments> EvalArguments(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> CallMacro(const Callable& callable, const Arguments& arguments);
  absl::StatusOr<Value> CallGlobal(const std::string& name, const Arguments& arguments);

  const RenderOptions& options_;
  Budget budget_;
  Rendered rendered_;
  std::string* out_ = nullptr;  // rendered_.text, or a capture
  int64_t output_bytes_ = 0;
  int frames_ = 0;
};

// Counts nested evaluations, so that recursion in a template cannot exhaust the stack.
class Interpreter::Frame {
 public:
  explicit Frame(Interpreter* interpreter) : interpreter_(interpreter) { ++interpreter_->frames_; }
  ~Frame() { --interpreter_->frames_; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;
  absl::Status Check() const;

 private:
  Interpreter* interpreter_;
};

}  // namespace longhaul::data::jinja
