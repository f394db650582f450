// Where micro-batches come from, by (epoch, update), so that a resume finds its place without replaying anything.
#pragma once

#include <cstdint>
#include <string>

#include "worker/train/decoder.h"

namespace longhaul::train {

// One accumulation window: the micro-batches of one optimizer update.
struct Window {
  int64_t micro_batches = 0;
  int64_t targets = 0;  // trained targets over all of them: what the loss is divided by, once
};

// Not thread-safe.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual int64_t UpdatesPerEpoch() const = 0;
  virtual Window GetWindow(int64_t epoch, int64_t update) = 0;
  // Micro-batch `index` of the window last got. The view is valid until the next call.
  virtual TokenBatch Get(int64_t index) = 0;
  // "lines 12, 40 and 97 of the dataset": what the micro-batch last got was made of, for messages.
  virtual std::string Describe() const = 0;
  // Most tokens of one micro-batch, and of one document; most documents of a micro-batch (a bound: no document is
  // empty): what the memory plan has to cover.
  virtual int64_t MostTokens() const = 0;
  virtual int64_t LongestDocument() const = 0;
  virtual int64_t MostDocuments() const { return MostTokens(); }
};

}  // namespace longhaul::train
