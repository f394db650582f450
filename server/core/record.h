// The bytes of one stored value: fields by number, in the wire format of protocol buffers (varint, 64-bit,
// length-delimited), so that rows written by an older or a newer build read: unknown numbers are skipped, absent ones
// keep the field's default. One function template per struct (codec.cc) lists its fields for both directions.
#pragma once

#include <bit>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace longhaul::server {

template <class T>
concept RecordScalar = std::is_enum_v<T> || std::is_integral_v<T>;

class RecordWriter {
 public:
  template <RecordScalar T>
  void operator()(int number, const T& value) {
    Varint(static_cast<uint64_t>(number) << 3);
    Varint(static_cast<uint64_t>(static_cast<int64_t>(value)));
  }
  void operator()(int number, const double& value) {
    Varint(static_cast<uint64_t>(number) << 3 | 1);
    const uint64_t bits = std::bit_cast<uint64_t>(value);
    for (int shift = 0; shift < 64; shift += 8) bytes_.push_back(static_cast<char>(bits >> shift));
  }
  void operator()(int number, const std::string& value) {
    Varint(static_cast<uint64_t>(number) << 3 | 2);
    Varint(value.size());
    bytes_ += value;
  }
  template <class T>
  void operator()(int number, const std::optional<T>& value) {
    if (value.has_value()) (*this)(number, *value);
  }
  template <class T>
  void operator()(int number, const std::vector<T>& values) {
    for (const T& value : values) (*this)(number, value);
  }
  void operator()(int number, const std::map<std::string, std::string>& values) {
    for (const auto& [key, value] : values) {
      RecordWriter entry;
      entry(1, key);
      entry(2, value);
      (*this)(number, entry.bytes_);
    }
  }
  template <class T>
  requires std::is_class_v<T>
  void operator()(int number, const T& value) {
    RecordWriter nested;
    Fields(nested, const_cast<T&>(value));  // Fields only reads through a writer
    (*this)(number, nested.bytes_);
  }

  std::string Take() { return std::move(bytes_); }

 private:
  void Varint(uint64_t value) {
    while (value >= 0x80) {
      bytes_.push_back(static_cast<char>(value | 0x80));
      value >>= 7;
    }
    bytes_.push_back(static_cast<char>(value));
  }
  std::string bytes_;
};

// Parses first, then hands out: fields may be asked for in any order. ok() is false where the bytes are not a record or
// a field has another wire type than asked for.
class RecordReader {
 public:
  explicit RecordReader(std::string_view bytes);
  bool ok() const { return ok_; }

  template <RecordScalar T>
  void operator()(int number, T& value) {
    const Field* field = Last(number, 0);
    if (field != nullptr) value = static_cast<T>(static_cast<int64_t>(field->number));
  }
  void operator()(int number, double& value) {
    const Field* field = Last(number, 1);
    if (field != nullptr) value = std::bit_cast<double>(field->number);
  }
  void operator()(int number, std::string& value) {
    const Field* field = Last(number, 2);
    if (field != nullptr) value = std::string(field->bytes);
  }
  template <class T>
  void operator()(int number, std::optional<T>& value) {
    value.reset();
    if (fields_.contains(number)) (*this)(number, value.emplace());
  }
  void operator()(int number, std::vector<double>& values) {
    values.clear();
    const auto found = fields_.find(number);
    if (found == fields_.end()) return;
    for (const Field& field : found->second) {
      ok_ = ok_ && field.type == 1;
      values.push_back(std::bit_cast<double>(field.number));
    }
  }
  template <class T>
  void operator()(int number, std::vector<T>& values) {
    values.clear();
    ForEach(number, [&](std::string_view bytes) {
      RecordReader nested(bytes);
      Fields(nested, values.emplace_back());
      ok_ = ok_ && nested.ok_;
    });
  }
  void operator()(int number, std::map<std::string, std::string>& values) {
    values.clear();
    ForEach(number, [&](std::string_view bytes) {
      RecordReader entry(bytes);
      std::string key;
      std::string value;
      entry(1, key);
      entry(2, value);
      ok_ = ok_ && entry.ok_;
      values[std::move(key)] = std::move(value);
    });
  }
  template <class T>
  requires std::is_class_v<T>
  void operator()(int number, T& value) {
    const Field* field = Last(number, 2);
    if (field == nullptr) return;
    RecordReader nested(field->bytes);
    Fields(nested, value);
    ok_ = ok_ && nested.ok_;
  }

 private:
  struct Field {
    int type = 0;
    uint64_t number = 0;
    std::string_view bytes;
  };
  const Field* Last(int number, int type);
  template <class F>
  void ForEach(int number, F f) {
    const auto found = fields_.find(number);
    if (found == fields_.end()) return;
    for (const Field& field : found->second) {
      if (field.type == 2) {
        f(field.bytes);
      } else {
        ok_ = false;
      }
    }
  }
  std::map<int, std::vector<Field>> fields_;
  bool ok_ = true;
};

}  // namespace longhaul::server
