// A latency distribution as HdrHistogram's text, which its plotter and other tools of its family read.
#pragma once

#include <string>

#include "ipc/latency_histogram.hpp"

namespace c10k {

/// The percentile distribution as HdrHistogram's outputPercentileDistribution() writes it: values in
/// milliseconds, five steps for each halving of the distance to 100 %, and the three lines at the end.
/// (https://github.com/HdrHistogram/HdrHistogram, AbstractHistogram.java)
[[nodiscard]] std::string hdr_text(const LatencyHistogram& latency);

}  // namespace c10k
