// Builds prometheus::MetricFamily values: one call a sample, families in the order of their first sample.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "prometheus/metric_family.h"

namespace longhaul::server {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// A value, not thread-safe. Names get the prefix "longhaul_". Help is one sentence.
class MetricBuilder {
 public:
  void Counter(const std::string& name, const std::string& help, double value, const MetricLabels& labels = {});
  void Gauge(const std::string& name, const std::string& help, double value, const MetricLabels& labels = {});
  // `cumulative[i]` is the number of values <= bounds[i]; `count` of all.
  template <typename Bounds, typename Counts>
  void Histogram(const std::string& name, const std::string& help, const Bounds& bounds, const Counts& cumulative,
                 uint64_t count, double sum, const MetricLabels& labels = {}) {
    prometheus::ClientMetric& metric = Add(name, help, prometheus::MetricType::Histogram, labels);
    metric.histogram.sample_count = count;
    metric.histogram.sample_sum = sum;
    for (size_t i = 0; i < bounds.size(); ++i) metric.histogram.bucket.push_back({cumulative[i], bounds[i]});
  }

  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& Add(const std::string& name, const std::string& help, prometheus::MetricType type,
                                const MetricLabels& labels);
  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace longhaul::server
