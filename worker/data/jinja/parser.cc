#include "worker/data/jinja/parser.h"

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/data/jinja/nesting.h"

namespace longhaul::data::jinja {
namespace {

std::string Shown(const Token& token) {
  if (token.kind == TokenKind::kEnd) return "the end of the template";
  std::string text(token.text.substr(0, 40));
  // A cut inside a character would not be UTF-8.
  while (!text.empty() && token.text.size() > 40 && (static_cast<uint8_t>(text.back()) & 0x80) != 0) text.pop_back();
  return "'" + text + "'";
}

}  // namespace

absl::Status Parser::Error(const std::string& what) const { return AtLine(TemplateError(what), Peek().line); }

absl::Status Parser::Unexpected(const std::string& expected) const {
  return Error("expected " + expected + ", found " + Shown(Peek()));
}

bool Parser::TakeOperator(std::string_view op) {
  if (!PeekOperator(op)) return false;
  Next();
  return true;
}

bool Parser::TakeName(std::string_view name) {
  if (!PeekName(name)) return false;
  Next();
  return true;
}

absl::Status Parser::Expect(TokenKind kind, std::string_view text) {
  const Token& token = Peek();
  if (token.kind != kind || (!text.empty() && token.text != text)) {
    const std::string block_end = kind == TokenKind::kBlockEnd ? "%}" : "}}";
    return Unexpected("'" + (text.empty() ? block_end : std::string(text)) + "'");
  }
  Next();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Parser::ExpectName() {
  if (Peek().kind != TokenKind::kName) return Unexpected("a name");
  return std::string(Next().text);
}

absl::StatusOr<Block> Parser::Parse() { return ParseBody({}); }

absl::StatusOr<Block> Parser::ParseBody(const std::vector<std::string_view>& ends) {
  Nesting nesting(this);
  LH_RETURN_IF_ERROR(nesting.Check());
  Block body;
  while (true) {
    const Token& token = Peek();
    if (token.kind == TokenKind::kEnd) {
      if (ends.empty()) return body;
      return Unexpected("'" + std::string(ends.back()) + "'");
    }
    if (token.kind == TokenKind::kText) {
      auto stmt = std::make_unique<Stmt>();
      stmt->line = token.line;
      stmt->text = std::string(Next().text);
      body.push_back(std::move(stmt));
      continue;
    }
    if (token.kind == TokenKind::kOutputBegin) {
      Next();
      auto stmt = std::make_unique<Stmt>();
      stmt->kind = StmtKind::kOutput;
      stmt->line = token.line;
      LH_ASSIGN_OR_RETURN(stmt->expr, ParseTuple());
      LH_RETURN_IF_ERROR(Expect(TokenKind::kOutputEnd, ""));
      body.push_back(std::move(stmt));
      continue;
    }
    Next();  // {%
    if (Peek().kind != TokenKind::kName) return Unexpected("the name of a tag");
    if (std::find(ends.begin(), ends.end(), Peek().text) != ends.end()) return body;
    LH_RETURN_IF_ERROR(ParseTag(&body));
  }
}

absl::StatusOr<Block> Parser::ParseBodyTo(std::string_view end) {
  LH_RETURN_IF_ERROR(Expect(TokenKind::kBlockEnd, ""));
  LH_ASSIGN_OR_RETURN(Block body, ParseBody({end}));
  LH_RETURN_IF_ERROR(Expect(TokenKind::kName, end));
  return body;
}

absl::Status Parser::ParseTag(Block* out) {
  const Token& tag = Next();
  auto stmt = std::make_unique<Stmt>();
  stmt->line = tag.line;
  if (tag.text == "if") {
    LH_RETURN_IF_ERROR(ParseIf(stmt.get()));
  } else if (tag.text == "for") {
    LH_RETURN_IF_ERROR(ParseFor(stmt.get()));
  } else if (tag.text == "set") {
    LH_RETURN_IF_ERROR(ParseSet(stmt.get()));
  } else if (tag.text == "macro") {
    LH_RETURN_IF_ERROR(ParseMacro(stmt.get()));
  } else if (tag.text == "filter") {
    LH_RETURN_IF_ERROR(ParseFilterBlock(stmt.get()));
  } else if (tag.text == "generation") {
    has_generation_ = true;
    stmt->kind = StmtKind::kGeneration;
    LH_ASSIGN_OR_RETURN(stmt->body, ParseBodyTo("endgeneration"));
  } else if (tag.text == "break" || tag.text == "continue") {
    if (loops_ == 0) return Error(std::string(tag.text) + " outside of a loop");
    stmt->kind = tag.text == "break" ? StmtKind::kBreak : StmtKind::kContinue;
  } else {
    return AtLine(MakeError(absl::StatusCode::kUnimplemented, "TEMPLATE_UNSUPPORTED",
                            "the tag " + Shown(tag) +
                                " is not known (known: if, for, set, macro, filter, raw, break, continue, generation)"),
                  tag.line);
  }
  out->push_back(std::move(stmt));
  return Expect(TokenKind::kBlockEnd, "");
}

absl::Status Parser::ParseIf(Stmt* stmt) {
  stmt->kind = StmtKind::kIf;
  LH_ASSIGN_OR_RETURN(ExprPtr condition, ParseTuple());
  while (true) {
    LH_RETURN_IF_ERROR(Expect(TokenKind::kBlockEnd, ""));
    const bool is_else = condition == nullptr;
    LH_ASSIGN_OR_RETURN(Block body, is_else ? ParseBody({"endif"}) : ParseBody({"elif", "else", "endif"}));
    stmt->branches.emplace_back(std::move(condition), std::move(body));
    if (TakeName("endif")) return absl::OkStatus();
    if (TakeName("else")) {
      condition = nullptr;
      continue;
    }
    LH_RETURN_IF_ERROR(Expect(TokenKind::kName, "elif"));
    LH_ASSIGN_OR_RETURN(condition, ParseTuple());
  }
}

absl::StatusOr<std::vector<std::string>> Parser::ParseTargets(std::string_view stop) {
  std::vector<std::string> names;
  const bool bracketed = TakeOperator("(");
  do {
    if (!names.empty() && (PeekName(stop) || PeekOperator(stop) || PeekOperator(")"))) break;
    LH_ASSIGN_OR_RETURN(names.emplace_back(), ExpectName());
  } while (TakeOperator(","));
  if (bracketed && !TakeOperator(")")) return Unexpected("')'");
  return names;
}

absl::Status Parser::ParseFor(Stmt* stmt) {
  stmt->kind = StmtKind::kFor;
  LH_ASSIGN_OR_RETURN(stmt->names, ParseTargets("in"));
  LH_RETURN_IF_ERROR(Expect(TokenKind::kName, "in"));
  // Without the conditional form: `if` here is the loop's filter.
  LH_ASSIGN_OR_RETURN(stmt->expr, ParseOr());
  if (PeekOperator(",")) {
    auto tuple = Make(ExprKind::kTuple);
    tuple->operands.push_back(std::move(stmt->expr));
    while (TakeOperator(",")) {
      LH_ASSIGN_OR_RETURN(tuple->operands.emplace_back(), ParseOr());
    }
    LH_ASSIGN_OR_RETURN(stmt->expr, Seal(std::move(tuple)));
  }
  if (TakeName("if")) {
    LH_ASSIGN_OR_RETURN(stmt->condition, ParseExpression());
  }
  if (PeekName("recursive")) {
    return AtLine(MakeError(absl::StatusCode::kUnimplemented, "TEMPLATE_UNSUPPORTED", "recursive loops are not known"),
                  Peek().line);
  }
  LH_RETURN_IF_ERROR(Expect(TokenKind::kBlockEnd, ""));
  ++loops_;
  auto body = ParseBody({"else", "endfor"});
  --loops_;
  LH_RETURN_IF_ERROR(body.status());
  stmt->body = *std::move(body);
  if (TakeName("else")) {
    LH_RETURN_IF_ERROR(Expect(TokenKind::kBlockEnd, ""));
    LH_ASSIGN_OR_RETURN(stmt->otherwise, ParseBody({"endfor"}));
  }
  return Expect(TokenKind::kName, "endfor");
}

absl::Status Parser::ParseSet(Stmt* stmt) {
  if (Peek().kind == TokenKind::kName && Peek(1).Is(TokenKind::kOperator, ".")) {
    stmt->kind = StmtKind::kSetMember;
    stmt->names.emplace_back(Next().text);
    Next();
    LH_ASSIGN_OR_RETURN(stmt->names.emplace_back(), ExpectName());
    LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, "="));
    LH_ASSIGN_OR_RETURN(stmt->expr, ParseTuple());
    return absl::OkStatus();
  }
  LH_ASSIGN_OR_RETURN(stmt->names, ParseTargets("="));
  if (TakeOperator("=")) {
    stmt->kind = StmtKind::kSet;
    LH_ASSIGN_OR_RETURN(stmt->expr, ParseTuple());
    return absl::OkStatus();
  }
  stmt->kind = StmtKind::kSetBlock;
  if (stmt->names.size() != 1) return Unexpected("'='");
  while (TakeOperator("|")) {
    LH_ASSIGN_OR_RETURN(stmt->expr, ParseFilter(std::move(stmt->expr)));
  }
  LH_ASSIGN_OR_RETURN(stmt->body, ParseBodyTo("endset"));
  return absl::OkStatus();
}

absl::Status Parser::ParseFilterBlock(Stmt* stmt) {
  stmt->kind = StmtKind::kFilter;
  do {
    LH_ASSIGN_OR_RETURN(stmt->expr, ParseFilter(std::move(stmt->expr)));
  } while (TakeOperator("|"));
  LH_ASSIGN_OR_RETURN(stmt->body, ParseBodyTo("endfilter"));
  return absl::OkStatus();
}

absl::Status Parser::ParseMacro(Stmt* stmt) {
  stmt->kind = StmtKind::kMacro;
  LH_ASSIGN_OR_RETURN(stmt->names.emplace_back(), ExpectName());
  LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, "("));
  while (!PeekOperator(")")) {
    if (!stmt->parameters.empty()) {
      LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, ","));
      if (PeekOperator(")")) break;
    }
    LH_ASSIGN_OR_RETURN(std::string name, ExpectName());
    ExprPtr fallback;
    if (TakeOperator("=")) {
      LH_ASSIGN_OR_RETURN(fallback, ParseExpression());
    } else if (!stmt->parameters.empty() && stmt->parameters.back().second != nullptr) {
      return Error("parameter '" + name + "' without a default follows one with a default");
    }
    stmt->parameters.emplace_back(std::move(name), std::move(fallback));
  }
  Next();
  const int loops = std::exchange(loops_, 0);
  auto body = ParseBodyTo("endmacro");
  loops_ = loops;
  LH_RETURN_IF_ERROR(body.status());
  stmt->body = *std::move(body);
  return absl::OkStatus();
}

}  // namespace longhaul::data::jinja
