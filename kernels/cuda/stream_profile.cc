#include "kernels/cuda/stream_profile.h"

#include <algorithm>

namespace longhaul::kernels::cuda {

void StreamProfile::Mark(size_t point) {
  points_.try_emplace(point, CudaEvent::Kind::kTiming).first->second.Record(stream_);
}

double StreamProfile::SecondsBetween(size_t from, size_t to) {
  return points_.at(to).MillisecondsSince(points_.at(from)) * 1e-3;
}

void StreamProfile::WaitFor(size_t point) {
  if (const auto found = points_.find(point); found != points_.end()) found->second.Synchronize();
}

void StreamProfile::Begin() {
  spans_.clear();
  is_on_ = true;
}

std::vector<CudaEngine::Part> StreamProfile::End() {
  is_on_ = false;
  stream_.Synchronize();
  std::vector<CudaEngine::Part> parts;
  for (const Span& span : spans_) {
    auto part = std::find_if(parts.begin(), parts.end(), [&](const auto& p) { return p.name == span.part; });
    if (part == parts.end()) part = parts.insert(part, {span.part, 0, 0});
    span.ended->Synchronize();  // of a stream beside ours
    part->seconds += span.ended->MillisecondsSince(*span.begun) * 1e-3;
    ++part->calls;
  }
  spans_.clear();
  return parts;
}

StreamProfile::Scope::Scope(StreamProfile* profile, const char* part, const CudaStream* beside)
    : profile_(profile->is_on_ ? profile : nullptr), stream_(beside != nullptr ? beside : &profile->stream_) {
  if (profile_ == nullptr) return;
  span_ = profile_->spans_.size();
  profile_->spans_.push_back({part, std::make_unique<CudaEvent>(CudaEvent::Kind::kTiming),
                              std::make_unique<CudaEvent>(CudaEvent::Kind::kTiming)});
  profile_->spans_[span_].begun->Record(*stream_);
}

StreamProfile::Scope::~Scope() {
  if (profile_ != nullptr) profile_->spans_[span_].ended->Record(*stream_);
}

}  // namespace longhaul::kernels::cuda
