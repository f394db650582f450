#include "server/http/metric_builder.h"

#include <algorithm>

#include "base/check.h"

namespace longhaul::server {

void MetricBuilder::Counter(const std::string& name, const std::string& help, double value,
                            const MetricLabels& labels) {
  Add(name, help, prometheus::MetricType::Counter, labels).counter.value = value;
}

void MetricBuilder::Gauge(const std::string& name, const std::string& help, double value, const MetricLabels& labels) {
  Add(name, help, prometheus::MetricType::Gauge, labels).gauge.value = value;
}

prometheus::ClientMetric& MetricBuilder::Add(const std::string& name, const std::string& help,
                                             prometheus::MetricType type, const MetricLabels& labels) {
  const std::string full_name = "longhaul_" + name;
  auto family = std::find_if(families_.begin(), families_.end(), [&](const auto& f) { return f.name == full_name; });
  if (family == families_.end()) {
    prometheus::MetricFamily fresh;
    fresh.name = full_name;
    fresh.help = help;
    fresh.type = type;
    families_.push_back(std::move(fresh));
    family = families_.end() - 1;
  }
  LH_CHECK(family->type == type, full_name);
  prometheus::ClientMetric& metric = family->metric.emplace_back();
  for (const auto& [label, value] : labels) metric.label.push_back({label, value});
  return metric;
}

}  // namespace longhaul::server
