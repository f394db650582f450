#include "worker/agent/local_model.h"

namespace longhaul::agent {

std::map<std::string, LocalModel> ByDigest(const ModelOffer& offer) {
  std::map<std::string, LocalModel> models;
  for (const OfferedModel& model : offer) models.emplace(model.proto.digest(), model.local);
  return models;
}

}  // namespace longhaul::agent
