// /metrics: the scheduler's figures in Prometheus' text format (API.md section 8). Read at the moment of a scrape,
// nothing is kept here. Units are base units; no job id is a label.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/tls_material.h"
#include "prometheus/metric_family.h"
#include "server/core/store.h"
#include "server/dispatcher_stats.h"
#include "server/request_stats.h"

namespace longhaul::server {

// What one scrape shows. A value: tests fill it by hand.
struct MetricsInput {
  DispatcherStats dispatcher;
  RequestStats::Snapshot requests;
  Store::Sizes sizes;
  std::string version;
  std::optional<TlsReloader::Counts> tls;  // none: plaintext
};

// One family a name, each with help and type. Pure.
std::vector<prometheus::MetricFamily> MetricFamilies(const MetricsInput& input);

// The text of a whole /metrics answer.
std::string RenderMetrics(const MetricsInput& input);

}  // namespace longhaul::server
