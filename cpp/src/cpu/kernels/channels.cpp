// SPDX-License-Identifier: Apache-2.0
// Sums and extremes of each channel, in one pass over the activations.
#include "element.hpp"

namespace mlcalib::cpu::MLCALIB_ISA {
namespace {

// Calls strip(first token of its channels, first channel, channels) for every strip.
template <class T, class Strip>
void for_each_strip(const Activations& x, int64_t first, int64_t last, const Strip& strip) {
  for (int64_t s = first; s < last; ++s) {
    const int64_t channel = s * kLanes;
    const int64_t left = x.channels - channel < kLanes ? x.channels - channel : kLanes;
    strip(static_cast<const T*>(x.data) + channel, channel, left);
  }
}

template <class T>
void moments_of(const Activations& x, int64_t first, int64_t last, double* sum, double* absolute,
                double* square) {
  for_each_strip<T>(x, first, last, [&](const T* from, int64_t channel, int64_t left) {
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
void range_of(const Activations& x, int64_t first, int64_t last, float* low, float* high) {
  for_each_strip<T>(x, first, last, [&](const T* from, int64_t channel, int64_t left) {
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

void moments(const Activations& x, int64_t first, int64_t last, double* sum, double* absolute,
             double* square) {
  switch (x.element) {
    case Element::kFloat:
      return moments_of<float>(x, first, last, sum, absolute, square);
    case Element::kBFloat16:
      return moments_of<uint16_t>(x, first, last, sum, absolute, square);
    case Element::kHalf:
      return moments_of<_Float16>(x, first, last, sum, absolute, square);
  }
}

void range(const Activations& x, int64_t first, int64_t last, float* low, float* high) {
  switch (x.element) {
    case Element::kFloat:
      return range_of<float>(x, first, last, low, high);
    case Element::kBFloat16:
      return range_of<uint16_t>(x, first, last, low, high);
    case Element::kHalf:
      return range_of<_Float16>(x, first, last, low, high);
  }
}

}  // namespace

extern const ChannelKernels channel_kernels;
const ChannelKernels channel_kernels = {kLanes, &moments, &range};

}  // namespace mlcalib::cpu::MLCALIB_ISA
