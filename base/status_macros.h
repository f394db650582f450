// Early returns for absl::Status and absl::StatusOr. The only macros that change control flow in Longhaul.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define LH_STATUS_CONCAT_INNER(a, b) a##b
#define LH_STATUS_CONCAT(a, b) LH_STATUS_CONCAT_INNER(a, b)

#define LH_RETURN_IF_ERROR(expr)                                            \
  do {                                                                      \
    if (absl::Status lh_status = (expr); !lh_status.ok()) return lh_status; \
  } while (false)

// LH_ASSIGN_OR_RETURN(auto value, Compute());
#define LH_ASSIGN_OR_RETURN(lhs, expr) LH_ASSIGN_OR_RETURN_IMPL(LH_STATUS_CONCAT(lh_or_, __LINE__), lhs, expr)
#define LH_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return tmp.status();            \
  lhs = std::move(tmp).value()
