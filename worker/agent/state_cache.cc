#include "worker/agent/state_cache.h"

#include <utility>

#include "base/env.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace longhaul::agent {

StateCache::StateCache(std::string path) : path_(std::move(path)) {
  const auto text = ReadFile(path_, limits::kMaxJsonFileBytes);
  if (text.ok()) values_ = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!values_.is_object()) values_ = nlohmann::json::object();
}

const nlohmann::json* StateCache::Find(const std::string& key) {
  used_.insert(key);
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &*found;
}

void StateCache::Put(const std::string& key, nlohmann::json value) {
  used_.insert(key);
  values_[key] = std::move(value);
  changed_ = true;
}

absl::Status StateCache::SaveAll() {
  if (!changed_) return absl::OkStatus();
  LH_RETURN_IF_ERROR(WriteFileAtomic(path_, values_.dump(1)));
  changed_ = false;
  return absl::OkStatus();
}

absl::Status StateCache::Save() {
  if (!changed_ && used_.size() == values_.size()) return absl::OkStatus();
  nlohmann::json kept = nlohmann::json::object();
  for (const std::string& key : used_) {
    if (values_.contains(key)) kept[key] = values_[key];
  }
  return WriteFileAtomic(path_, kept.dump(1));
}

}  // namespace longhaul::agent
