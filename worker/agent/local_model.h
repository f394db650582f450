// A model as it lay on this host when its digest was taken.
#pragma once

#include <string>

namespace longhaul::agent {

struct LocalModel {
  std::string path;
  std::string fingerprint;  // ModelSource::Fingerprint; a trainer that finds another one refuses the model
};

}  // namespace longhaul::agent
