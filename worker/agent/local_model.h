// Models as they lay on this host when their digests were taken.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "longhaul/v1/worker_service.pb.h"

namespace longhaul::agent {

struct LocalModel {
  std::string path;
  std::string fingerprint;              // ModelSource::Fingerprint; a trainer that finds another one refuses the model
  std::string stamp;                    // ModelStamp (model_watch.h): while it is the same, so is the fingerprint
  std::vector<std::string> files = {};  // ModelSource::DigestFiles, of which the fingerprint is; none = not compared
};

struct OfferedModel {
  v1::Model proto;
  LocalModel local;
};

// What the agent offers of models, by folder and name.
using ModelOffer = std::vector<OfferedModel>;

// Of two equal models the first.
std::map<std::string, LocalModel> ByDigest(const ModelOffer& offer);

}  // namespace longhaul::agent
