// A whole state folder for tests that break or copy one: the kept state's rows, and its blobs as files.
#pragma once

#include <string>

#include "base/check.h"
#include "base/hash.h"
#include "storage/blob_store.h"
#include "storage/job_store.h"
#include "tests/storage/kept_state.h"

namespace longhaul::storage {

inline void PutBlobFile(const std::string& folder, const std::string& content) {
  BlobStore::Options options;
  options.min_free_bytes = 0;
  auto blobs = BlobStore::Open(folder, options);
  LH_CHECK(blobs.ok());
  auto upload = (*blobs)->BeginUpload({Sha256Hex(content), static_cast<int64_t>(content.size())});
  LH_CHECK(upload.ok() && (*upload)->Append(0, content).ok() && (*upload)->Finish().ok(), content);
}

inline void MakeKeptFolder(const std::string& folder) {
  const KeptState state = MakeKeptState();
  auto store = OpenJobStore(folder);
  LH_CHECK(store.ok(), std::string(store.status().message()));
  LH_CHECK(WriteKeptState(state, store->get()).ok());
  for (const std::string& content : state.contents) PutBlobFile(folder, content);
}

}  // namespace longhaul::storage
