// Tokens to a tree: statements here, expressions in parser_expressions.cc. Source: Jinja 3.1's parser, of which this
// takes the part that chat templates use (FORMATS.md section 6).
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/data/jinja/ast.h"
#include "worker/data/jinja/lexer.h"

namespace longhaul::data::jinja {

class Parser {
 public:
  // The tokens outlive the parser; the last is kEnd.
  explicit Parser(const std::vector<Token>& tokens) : tokens_(tokens) {}

  // INVALID_ARGUMENT names the line and what was expected; UNIMPLEMENTED (reason TEMPLATE_UNSUPPORTED) a tag that
  // Longhaul lacks.
  absl::StatusOr<Block> Parse();
  // Whether the template has a generation block.
  bool has_generation() const { return has_generation_; }

 private:
  class Nesting;

  const Token& Peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& Next() { return tokens_[at_ < tokens_.size() - 1 ? at_++ : at_]; }
  bool PeekOperator(std::string_view op) const { return Peek().Is(TokenKind::kOperator, op); }
  bool PeekName(std::string_view name) const { return Peek().Is(TokenKind::kName, name); }
  bool TakeOperator(std::string_view op);
  bool TakeName(std::string_view name);
  absl::Status Expect(TokenKind kind, std::string_view text);
  absl::StatusOr<std::string> ExpectName();
  absl::Status Error(const std::string& what) const;
  absl::Status Unexpected(const std::string& expected) const;

  // Statements, up to a block tag whose name is in `ends` (its name is then the next token) or the end of the template.
  absl::StatusOr<Block> ParseBody(const std::vector<std::string_view>& ends);
  absl::Status ParseTag(Block* out);
  absl::StatusOr<Block> ParseBodyTo(std::string_view end);
  absl::Status ParseIf(Stmt* stmt);
  absl::Status ParseFor(Stmt* stmt);
  absl::Status ParseSet(Stmt* stmt);
  absl::Status ParseMacro(Stmt* stmt);
  absl::Status ParseFilterBlock(Stmt* stmt);
  absl::StatusOr<std::vector<std::string>> ParseTargets(std::string_view stop);

  absl::StatusOr<ExprPtr> ParseTuple();  // an expression, or several with commas
  absl::StatusOr<ExprPtr> ParseExpression();
  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseBinary(int level);
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filter);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParseLiteral();
  absl::StatusOr<ExprPtr> ParseNameExpr();
  absl::StatusOr<ExprPtr> ParseBracketed();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr node);
  absl::StatusOr<ExprPtr> ParseFilter(ExprPtr node);  // after the `|`
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr node);
  absl::Status ParseArguments(Expr* call);
  ExprPtr Make(ExprKind kind) const;
  // Sets the height from the children; refuses a tree that is too high.
  absl::StatusOr<ExprPtr> Seal(ExprPtr node) const;

  const std::vector<Token>& tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  bool has_generation_ = false;
};

}  // namespace longhaul::data::jinja
