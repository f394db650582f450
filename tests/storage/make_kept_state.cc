// make_kept_state FOLDER: writes FOLDER/state.db under this build's schema. See kept_state.h.
#include <cstdio>

#include "storage/job_store.h"
#include "tests/storage/kept_state.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_kept_state FOLDER\n");
    return 2;
  }
  auto store = longhaul::storage::OpenJobStore(argv[1]);
  absl::Status status = store.status();
  if (status.ok()) {
    status = longhaul::storage::WriteKeptState(longhaul::storage::MakeKeptState(), store->get());
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "make_kept_state: %s\n", std::string(status.message()).c_str());
  return 1;
}
