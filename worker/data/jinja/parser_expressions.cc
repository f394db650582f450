#include <charconv>

#include "base/error.h"
#include "base/status_macros.h"
#include "worker/data/jinja/nesting.h"
#include "worker/data/jinja/parser.h"

namespace longhaul::data::jinja {
namespace {

struct BinaryToken {
  std::string_view text;
  Operator op;
};

// Tightest last. `**` is left-associative in Jinja's own parser too.
const std::vector<std::vector<BinaryToken>>& Levels() {
  static const std::vector<std::vector<BinaryToken>> levels = {
      {{"+", Operator::kAdd}, {"-", Operator::kSubtract}},
      {{"~", Operator::kConcat}},
      {{"*", Operator::kMultiply}, {"/", Operator::kDivide}, {"//", Operator::kFloorDivide}, {"%", Operator::kModulo}},
      {{"**", Operator::kPower}},
  };
  return levels;
}

constexpr BinaryToken kComparisons[] = {
    {"==", Operator::kEqual},     {"!=", Operator::kNotEqual}, {"<", Operator::kLess},
    {"<=", Operator::kLessEqual}, {">", Operator::kGreater},   {">=", Operator::kGreaterEqual},
};

std::string WithoutUnderscores(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c != '_') out.push_back(c);
  }
  return out;
}

}  // namespace

ExprPtr Parser::Make(ExprKind kind) const {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = Peek().line;
  return node;
}

absl::StatusOr<ExprPtr> Parser::Seal(ExprPtr node) const {
  auto include = [&](const ExprPtr& child) {
    if (child != nullptr) node->height = std::max(node->height, child->height + 1);
  };
  for (const ExprPtr& child : node->operands) include(child);
  for (const ExprPtr& child : node->arguments) include(child);
  for (const auto& named : node->named_arguments) include(named.second);
  if (node->height > limits::kMaxTemplateDepth) {
    return Error("an expression nests deeper than " + std::to_string(limits::kMaxTemplateDepth) + " levels");
  }
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseTuple() {
  LH_ASSIGN_OR_RETURN(ExprPtr first, ParseExpression());
  if (!PeekOperator(",")) return first;
  ExprPtr tuple = Make(ExprKind::kTuple);
  tuple->operands.push_back(std::move(first));
  while (TakeOperator(",")) {
    if (Peek().kind == TokenKind::kBlockEnd || Peek().kind == TokenKind::kOutputEnd || PeekOperator(")")) break;
    LH_ASSIGN_OR_RETURN(tuple->operands.emplace_back(), ParseExpression());
  }
  return Seal(std::move(tuple));
}

absl::StatusOr<ExprPtr> Parser::ParseExpression() {
  Nesting nesting(this);
  LH_RETURN_IF_ERROR(nesting.Check());
  LH_ASSIGN_OR_RETURN(ExprPtr node, ParseOr());
  while (PeekName("if")) {
    ExprPtr conditional = Make(ExprKind::kConditional);
    Next();
    conditional->operands.push_back(std::move(node));
    LH_ASSIGN_OR_RETURN(conditional->operands.emplace_back(), ParseOr());
    conditional->operands.emplace_back();
    if (TakeName("else")) {
      LH_ASSIGN_OR_RETURN(conditional->operands.back(), ParseExpression());
    }
    LH_ASSIGN_OR_RETURN(node, Seal(std::move(conditional)));
  }
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseOr() {
  LH_ASSIGN_OR_RETURN(ExprPtr node, ParseAnd());
  while (PeekName("or")) {
    ExprPtr parent = Make(ExprKind::kOr);
    Next();
    parent->operands.push_back(std::move(node));
    LH_ASSIGN_OR_RETURN(parent->operands.emplace_back(), ParseAnd());
    LH_ASSIGN_OR_RETURN(node, Seal(std::move(parent)));
  }
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseAnd() {
  LH_ASSIGN_OR_RETURN(ExprPtr node, ParseNot());
  while (PeekName("and")) {
    ExprPtr parent = Make(ExprKind::kAnd);
    Next();
    parent->operands.push_back(std::move(node));
    LH_ASSIGN_OR_RETURN(parent->operands.emplace_back(), ParseNot());
    LH_ASSIGN_OR_RETURN(node, Seal(std::move(parent)));
  }
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseNot() {
  if (!PeekName("not")) return ParseCompare();
  Nesting nesting(this);
  LH_RETURN_IF_ERROR(nesting.Check());
  ExprPtr node = Make(ExprKind::kNot);
  Next();
  LH_ASSIGN_OR_RETURN(node->operands.emplace_back(), ParseNot());
  return Seal(std::move(node));
}

absl::StatusOr<ExprPtr> Parser::ParseCompare() {
  LH_ASSIGN_OR_RETURN(ExprPtr node, ParseBinary(0));
  ExprPtr compare = Make(ExprKind::kCompare);
  while (true) {
    const auto* found = std::find_if(std::begin(kComparisons), std::end(kComparisons),
                                     [&](const BinaryToken& t) { return PeekOperator(t.text); });
    if (found != std::end(kComparisons)) {
      Next();
      compare->operators.push_back(found->op);
    } else if (TakeName("in")) {
      compare->operators.push_back(Operator::kIn);
    } else if (PeekName("not") && Peek(1).Is(TokenKind::kName, "in")) {
      Next();
      Next();
      compare->operators.push_back(Operator::kNotIn);
    } else {
      break;
    }
    if (compare->operands.empty()) compare->operands.push_back(std::move(node));
    LH_ASSIGN_OR_RETURN(compare->operands.emplace_back(), ParseBinary(0));
  }
  if (compare->operators.empty()) return node;
  return Seal(std::move(compare));
}

absl::StatusOr<ExprPtr> Parser::ParseBinary(int level) {
  if (level == static_cast<int>(Levels().size())) return ParseUnary(true);
  LH_ASSIGN_OR_RETURN(ExprPtr node, ParseBinary(level + 1));
  while (true) {
    const auto& tokens = Levels()[static_cast<size_t>(level)];
    auto found = std::find_if(tokens.begin(), tokens.end(), [&](const BinaryToken& t) { return PeekOperator(t.text); });
    if (found == tokens.end()) return node;
    ExprPtr parent = Make(ExprKind::kBinary);
    parent->op = found->op;
    Next();
    parent->operands.push_back(std::move(node));
    LH_ASSIGN_OR_RETURN(parent->operands.emplace_back(), ParseBinary(level + 1));
    LH_ASSIGN_OR_RETURN(node, Seal(std::move(parent)));
  }
}

absl::StatusOr<ExprPtr> Parser::ParseUnary(bool with_filter) {
  Nesting nesting(this);
  LH_RETURN_IF_ERROR(nesting.Check());
  ExprPtr node;
  if (PeekOperator("-")) {
    node = Make(ExprKind::kNegate);
    Next();
    LH_ASSIGN_OR_RETURN(node->operands.emplace_back(), ParseUnary(false));
    LH_ASSIGN_OR_RETURN(node, Seal(std::move(node)));
  } else if (TakeOperator("+")) {
    LH_ASSIGN_OR_RETURN(node, ParseUnary(false));
  } else {
    LH_ASSIGN_OR_RETURN(node, ParsePrimary());
  }
  LH_ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  if (!with_filter) return node;
  return ParseFilters(std::move(node));
}

absl::StatusOr<ExprPtr> Parser::ParsePrimary() {
  if (Peek().kind == TokenKind::kName) return ParseNameExpr();
  if (Peek().kind == TokenKind::kOperator) return ParseBracketed();
  return ParseLiteral();
}

absl::StatusOr<ExprPtr> Parser::ParseNameExpr() {
  ExprPtr node = Make(ExprKind::kLiteral);
  const std::string_view name = Next().text;
  if (name == "true" || name == "True") {
    node->literal = Value::Bool(true);
  } else if (name == "false" || name == "False") {
    node->literal = Value::Bool(false);
  } else if (name == "none" || name == "None") {
    node->literal = Value::None();
  } else {
    node->kind = ExprKind::kName;
    node->name = std::string(name);
  }
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseLiteral() {
  ExprPtr node = Make(ExprKind::kLiteral);
  const Token& token = Peek();
  if (token.kind == TokenKind::kString) {
    std::string text;
    while (Peek().kind == TokenKind::kString) {  // "a" "b" is one string
      LH_ASSIGN_OR_RETURN(const std::string part, DecodeStringToken(Next()));
      text += part;
    }
    node->literal = Value::String(std::move(text));
    return node;
  }
  const std::string digits = WithoutUnderscores(token.text);
  if (token.kind == TokenKind::kInteger) {
    int64_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc()) return Error("integer " + digits.substr(0, 40) + " is too large");
    node->literal = Value::Int(value);
  } else if (token.kind == TokenKind::kFloat) {
    double value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc()) return Error("number " + digits.substr(0, 40) + " is out of range");
    node->literal = Value::Float(value);
  } else {
    return Unexpected("an expression");
  }
  Next();
  return node;
}

absl::StatusOr<ExprPtr> Parser::ParseBracketed() {
  Nesting nesting(this);
  LH_RETURN_IF_ERROR(nesting.Check());
  if (TakeOperator("(")) {
    if (PeekOperator(")")) {
      ExprPtr empty = Make(ExprKind::kTuple);
      Next();
      return empty;
    }
    LH_ASSIGN_OR_RETURN(ExprPtr inner, ParseTuple());
    LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, ")"));
    return inner;
  }
  const bool is_list = PeekOperator("[");
  if (!is_list && !PeekOperator("{")) return Unexpected("an expression");
  const std::string_view close = is_list ? "]" : "}";
  ExprPtr node = Make(is_list ? ExprKind::kList : ExprKind::kDict);
  Next();
  while (!PeekOperator(close)) {
    if (!node->operands.empty()) {
      LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, ","));
      if (PeekOperator(close)) break;
    }
    LH_ASSIGN_OR_RETURN(node->operands.emplace_back(), ParseExpression());
    if (is_list) continue;
    LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, ":"));
    LH_ASSIGN_OR_RETURN(node->operands.emplace_back(), ParseExpression());
  }
  Next();
  return Seal(std::move(node));
}

absl::StatusOr<ExprPtr> Parser::ParsePostfix(ExprPtr node) {
  while (true) {
    if (PeekOperator(".")) {
      ExprPtr parent = Make(ExprKind::kAttribute);
      Next();
      if (Peek().kind == TokenKind::kInteger) {  // foo.0 is foo[0]
        parent->kind = ExprKind::kSubscript;
        parent->operands.push_back(std::move(node));
        LH_ASSIGN_OR_RETURN(parent->operands.emplace_back(), ParseLiteral());
      } else {
        parent->operands.push_back(std::move(node));
        LH_ASSIGN_OR_RETURN(parent->name, ExpectName());
      }
      LH_ASSIGN_OR_RETURN(node, Seal(std::move(parent)));
    } else if (PeekOperator("[")) {
      LH_ASSIGN_OR_RETURN(node, ParseSubscript(std::move(node)));
    } else if (PeekOperator("(")) {
      ExprPtr call = Make(ExprKind::kCall);
      call->operands.push_back(std::move(node));
      LH_RETURN_IF_ERROR(ParseArguments(call.get()));
      LH_ASSIGN_OR_RETURN(node, Seal(std::move(call)));
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseSubscript(ExprPtr node) {
  ExprPtr parent = Make(ExprKind::kSubscript);
  Next();
  parent->operands.push_back(std::move(node));
  ExprPtr first;
  if (!PeekOperator(":")) {
    LH_ASSIGN_OR_RETURN(first, ParseExpression());
  }
  parent->operands.push_back(std::move(first));
  if (PeekOperator(":")) {
    parent->kind = ExprKind::kSlice;
    while (parent->operands.size() < 4 && TakeOperator(":")) {
      ExprPtr bound;
      if (!PeekOperator(":") && !PeekOperator("]")) {
        LH_ASSIGN_OR_RETURN(bound, ParseExpression());
      }
      parent->operands.push_back(std::move(bound));
    }
    parent->operands.resize(4);
  }
  LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, "]"));
  return Seal(std::move(parent));
}

absl::Status Parser::ParseArguments(Expr* call) {
  LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, "("));
  bool first = true;
  while (!PeekOperator(")")) {
    if (!first) {
      LH_RETURN_IF_ERROR(Expect(TokenKind::kOperator, ","));
      if (PeekOperator(")")) break;
    }
    first = false;
    if (Peek().kind == TokenKind::kName && Peek(1).Is(TokenKind::kOperator, "=")) {
      std::string name(Next().text);
      Next();
      LH_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      call->named_arguments.emplace_back(std::move(name), std::move(value));
      continue;
    }
    if (!call->named_arguments.empty()) return Error("a positional argument follows a named one");
    LH_ASSIGN_OR_RETURN(call->arguments.emplace_back(), ParseExpression());
  }
  Next();
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> Parser::ParseFilters(ExprPtr node) {
  while (true) {
    if (TakeOperator("|")) {
      LH_ASSIGN_OR_RETURN(node, ParseFilter(std::move(node)));
    } else if (PeekName("is")) {
      LH_ASSIGN_OR_RETURN(node, ParseTest(std::move(node)));
    } else if (PeekOperator("(")) {
      LH_ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseFilter(ExprPtr node) {
  ExprPtr filter = Make(ExprKind::kFilter);
  filter->operands.push_back(std::move(node));
  LH_ASSIGN_OR_RETURN(filter->name, ExpectName());
  if (PeekOperator("(")) LH_RETURN_IF_ERROR(ParseArguments(filter.get()));
  return Seal(std::move(filter));
}

absl::StatusOr<ExprPtr> Parser::ParseTest(ExprPtr node) {
  Next();  // is
  const bool negated = TakeName("not");
  ExprPtr test = Make(ExprKind::kTest);
  test->operands.push_back(std::move(node));
  LH_ASSIGN_OR_RETURN(test->name, ExpectName());
  const Token& next = Peek();
  const bool is_value = next.kind == TokenKind::kName || next.kind == TokenKind::kString ||
                        next.kind == TokenKind::kInteger || next.kind == TokenKind::kFloat || PeekOperator("[") ||
                        PeekOperator("{");
  const bool is_keyword = PeekName("else") || PeekName("or") || PeekName("and") || PeekName("is") || PeekName("if") ||
                          PeekName("in") || PeekName("not");
  if (PeekOperator("(")) {
    LH_RETURN_IF_ERROR(ParseArguments(test.get()));
  } else if (is_value && !is_keyword) {
    // `x is divisibleby 3`: one argument without parentheses.
    LH_ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
    LH_ASSIGN_OR_RETURN(test->arguments.emplace_back(), ParsePostfix(std::move(argument)));
  }
  LH_ASSIGN_OR_RETURN(node, Seal(std::move(test)));
  if (!negated) return node;
  ExprPtr inverse = Make(ExprKind::kNot);
  inverse->operands.push_back(std::move(node));
  return Seal(std::move(inverse));
}

}  // namespace longhaul::data::jinja
