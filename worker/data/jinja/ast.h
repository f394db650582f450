// The tree of a template. Immutable once parsed. Heights are bounded by limits::kMaxTemplateDepth, so recursion over a
// tree is safe.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/data/jinja/value.h"

namespace longhaul::data::jinja {

enum class ExprKind : unsigned char {
  kLiteral,      // literal
  kName,         // name
  kList,         // operands
  kTuple,        // operands
  kDict,         // operands: key, value, key, value, ...
  kAttribute,    // operands[0] . name
  kSubscript,    // operands[0] [ operands[1] ]
  kSlice,        // operands[0] [ operands[1] : operands[2] : operands[3] ], each may be null
  kCall,         // operands[0] ( arguments )
  kFilter,       // operands[0] | name ( arguments ); operands[0] is null for the body of a set or filter block
  kTest,         // operands[0] is name ( arguments )
  kNot,          // operands[0]
  kNegate,       // operands[0]
  kBinary,       // operands[0] op operands[1]
  kCompare,      // operands[0] operators[0] operands[1] operators[1] operands[2] ...
  kAnd,          // operands[0], operands[1]
  kOr,           // operands[0], operands[1]
  kConditional,  // operands[0] if operands[1] else operands[2], which may be null
};

enum class Operator : unsigned char {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kConcat,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind = ExprKind::kLiteral;
  Operator op = Operator::kAdd;
  int line = 1;
  int height = 1;
  std::string name;
  Value literal;
  std::vector<ExprPtr> operands;
  std::vector<Operator> operators;
  std::vector<ExprPtr> arguments;
  std::vector<std::pair<std::string, ExprPtr>> named_arguments;
};

enum class StmtKind : unsigned char {
  kText,       // text
  kOutput,     // expr
  kIf,         // branches
  kFor,        // names, expr, condition (null = none), body, otherwise
  kSet,        // names = expr
  kSetMember,  // names[0] . names[1] = expr
  kSetBlock,   // names[0] = body through filters
  kFilter,     // body through the filters of expr
  kMacro,      // names[0], parameters, body
  kBreak,
  kContinue,
  kGeneration,  // body
};

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 1;
  std::string text;
  std::vector<std::string> names;
  ExprPtr expr;
  ExprPtr condition;
  Block body;
  Block otherwise;
  std::vector<std::pair<ExprPtr, Block>> branches;          // kIf; the condition of else is null
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // kMacro; the default may be null
};

}  // namespace longhaul::data::jinja
