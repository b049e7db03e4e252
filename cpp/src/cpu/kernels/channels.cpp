// SPDX-License-Identifier: Apache-2.0
// Sums, extremes and histograms of each channel, in one pass over the activations.
#include "../../histogram.hpp"
#include "element.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// Calls strip(first token of its channels, first channel, channels) for every strip.
template <class T, class Strip>
void for_each_strip(const Activations& x, const T* data, int64_t first, int64_t last,
                    const Strip& strip) {
  for (int64_t s = first; s < last; ++s) {
    const int64_t channel = s * kLanes;
    const int64_t left = x.channels - channel < kLanes ? x.channels - channel : kLanes;
    strip(data + channel, channel, left);
  }
}

template <class T>
void moments_of(const Activations& x, const T* data, int64_t first, int64_t last, double* sum,
                double* absolute, double* square) {
  for_each_strip(x, data, first, last, [&](const T* from, int64_t channel, int64_t left) {
    Vec sums{}, absolutes{}, squares{};
    for (int64_t t = 0; t < x.tokens; ++t, from += x.stride) {
      const Vec v = load_channels(from, left);
      sums += v;
      absolutes += max_of(v, -v);
      squares += v * v;
    }
    for (int64_t i = 0; i < left; ++i) {
      sum[channel + i] += static_cast<double>(sums[i]);
      absolute[channel + i] += static_cast<double>(absolutes[i]);
      square[channel + i] += static_cast<double>(squares[i]);
    }
  });
}

template <class T>
void range_of(const Activations& x, const T* data, int64_t first, int64_t last, float* low,
              float* high) {
  for_each_strip(x, data, first, last, [&](const T* from, int64_t channel, int64_t left) {
    Vec lows = load_channels(low + channel, left), highs = load_channels(high + channel, left);
    for (int64_t t = 0; t < x.tokens; ++t, from += x.stride) {
      const Vec v = load_channels(from, left);
      lows = min_of(v, lows);
      highs = max_of(v, highs);
    }
    for (int64_t i = 0; i < left; ++i) {
      low[channel + i] = lows[i];
      high[channel + i] = highs[i];
    }
  });
}

// A strip's counts stay in the first cache.
template <class T>
void histogram_of(const Activations& x, const T* data, int64_t first, int64_t last,
                  const float* unit, double* counts) {
  for_each_strip(x, data, first, last, [&](const T* from, int64_t channel, int64_t left) {
    const Vec units = load_channels(unit + channel, left);
    double* own = counts + channel * kHistogramBins;
    for (int64_t t = 0; t < x.tokens; ++t, from += x.stride) {
      const Mask magnitude = reinterpret_cast<Mask>(load_channels(from, left) / units) & 0x7fffffff;
      const Mask bin = (magnitude >> kHistogramShift) - kHistogramFirst;
      const Mask inside = min_of(max_of(bin, Mask{}), Mask{} + (kHistogramBins - 1));
      for (int64_t i = 0; i < left; ++i) own[i * kHistogramBins + inside[i]] += 1;
    }
  });
}

void moments(const Activations& x, int64_t first, int64_t last, double* sum, double* absolute,
             double* square) {
  with_elements(x.element, x.data,
                [&](const auto* data) { moments_of(x, data, first, last, sum, absolute, square); });
}

void range(const Activations& x, int64_t first, int64_t last, float* low, float* high) {
  with_elements(x.element, x.data,
                [&](const auto* data) { range_of(x, data, first, last, low, high); });
}

void histogram(const Activations& x, int64_t first, int64_t last, const float* unit,
               double* counts) {
  with_elements(x.element, x.data,
                [&](const auto* data) { histogram_of(x, data, first, last, unit, counts); });
}

}  // namespace

extern const ChannelKernels channel_kernels;
const ChannelKernels channel_kernels = {kLanes, &moments, &range, &histogram};

}  // namespace mlcalib::cpu::MLCALIB_ISA
