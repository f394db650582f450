// Damages a message as a hostile client would: fields set to extremes, unknown enumerators, names that leave their
// folder, repeated fields that are empty, doubled or huge, messages left out. By reflection, so that damage gets behind
// the parser; MutateBytes damages what the parser sees.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "google/protobuf/message.h"

namespace longhaul {

class ProtoMutator {
 public:
  explicit ProtoMutator(uint32_t seed) : random_(seed) {}

  // Strings that mean something to who reads the message: ids that exist, names of models.
  void SetWords(std::vector<std::string> words) { words_ = std::move(words); }

  size_t Draw(size_t n) { return n == 0 ? 0 : random_() % n; }
  bool Chance(int percent) { return Draw(100) < static_cast<size_t>(percent); }

  // One to four changes anywhere in the message.
  void Mutate(google::protobuf::Message* message);
  std::string MutateBytes(std::string bytes);
  std::string String();
  int64_t Integer();
  double Float();

 private:
  using Field = google::protobuf::FieldDescriptor;
  void Change(google::protobuf::Message* message);
  void SetField(google::protobuf::Message* message, const Field* field);
  void ChangeRepeated(google::protobuf::Message* message, const Field* field);
  void Grow(google::protobuf::Message* message, const Field* field, size_t count);

  std::mt19937 random_;
  std::vector<std::string> words_;
};

}  // namespace longhaul
