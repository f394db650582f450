// Models as they lay on this host when their digests were taken.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "longhaul/v1/worker_service.pb.h"

namespace longhaul::agent {

struct LocalModel {
  std::string path;
  std::string fingerprint;  // ModelSource::Fingerprint; a trainer that finds another one refuses the model
  std::string stamp;        // ModelStamp (model_watch.h); "" = not to be compared
};

// What the agent offers of models.
struct ModelOffer {
  std::vector<v1::Model> inventory;
  std::map<std::string, LocalModel> models;  // by digest; of two equal models the first by path
};

}  // namespace longhaul::agent
