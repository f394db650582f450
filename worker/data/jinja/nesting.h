// Counts nested parsing calls, so that a hostile template cannot exhaust the stack.
#pragma once

#include "worker/data/jinja/parser.h"

namespace longhaul::data::jinja {

class Parser::Nesting {
 public:
  explicit Nesting(Parser* parser) : parser_(parser) { ++parser_->nesting_; }
  ~Nesting() { --parser_->nesting_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;
  absl::Status Check() const {
    if (parser_->nesting_ <= limits::kMaxTemplateDepth) return absl::OkStatus();
    return parser_->Error("nests deeper than " + std::to_string(limits::kMaxTemplateDepth) + " levels");
  }

 private:
  Parser* parser_;
};

}  // namespace longhaul::data::jinja
