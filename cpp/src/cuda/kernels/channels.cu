// SPDX-License-Identifier: Apache-2.0
// Sums, extremes and histograms of each channel, and what is not finite. A block has a strip of
// channels for itself and adds its parts in a fixed order: the same tokens give the same bits.
#include "launch.cuh"

namespace mlcalib::cuda {
namespace {

constexpr int kChannels = 32;    // of a block: one warp reads them of one token
constexpr int kTokenLanes = 32;  // tokens that a block reads at a time
constexpr int kThreads = kChannels * kTokenLanes;
constexpr int64_t kTokens = 256;  // summed in float32 before they are added to float64

/// Calls visit(value) with every kTokenLanes-th token from `first` on, `count` at most.
template <class T, class Visit>
__device__ int64_t visit_tokens(const Activations& x, int64_t channel, int64_t first, int64_t count,
                                const Visit& visit) {
  const T* data = static_cast<const T*>(x.data) + channel;
  int64_t token = first;
  for (int64_t i = 0; i < count && token < x.tokens; ++i, token += kTokenLanes) {
    visit(to_float(data[token * x.stride]));
  }
  return token;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    moments_kernel(Activations x, double* sum, double* absolute, double* square) {
  __shared__ double part[3][kTokenLanes][kChannels];
  const int of_strip = static_cast<int>(threadIdx.x) % kChannels;
  const int lane = static_cast<int>(threadIdx.x) / kChannels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kChannels + of_strip;
  double sums[3] = {};
  if (channel < x.channels) {
    for (int64_t token = lane; token < x.tokens;) {
      Moments few;
      token = visit_tokens<T>(x, channel, token, kTokens,
                              [&](float value) { few = added(few, value); });
      sums[0] += static_cast<double>(few.sum);
      sums[1] += static_cast<double>(few.absolute);
      sums[2] += static_cast<double>(few.square);
    }
  }
  for (int i = 0; i < 3; ++i) part[i][lane][of_strip] = sums[i];
  __syncthreads();
  if (lane >= 3 || channel >= x.channels) return;
  double total = 0;
  for (int i = 0; i < kTokenLanes; ++i) total += part[lane][i][of_strip];
  (lane == 0 ? sum : lane == 1 ? absolute : square)[channel] += total;
}

template <class T>
__global__ void __launch_bounds__(kThreads) range_kernel(Activations x, float* low, float* high) {
  __shared__ float part[2][kTokenLanes][kChannels];
  const int of_strip = static_cast<int>(threadIdx.x) % kChannels;
  const int lane = static_cast<int>(threadIdx.x) / kChannels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kChannels + of_strip;
  const bool exists = channel < x.channels;
  Extremes found{exists ? low[channel] : 0.0F, exists ? high[channel] : 0.0F};
  if (exists) {
    visit_tokens<T>(x, channel, lane, x.tokens,
                    [&](float value) { found = widened(found, value); });
  }
  part[0][lane][of_strip] = found.low;
  part[1][lane][of_strip] = found.high;
  __syncthreads();
  if (lane > 0 || !exists) return;
  for (int i = 1; i < kTokenLanes; ++i) {
    found = joined(found, {part[0][i][of_strip], part[1][i][of_strip]});
  }
  low[channel] = found.low;
  high[channel] = found.high;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    histogram_kernel(Activations x, const float* unit, double* counts) {
  __shared__ uint32_t found[kChannels * kHistogramBins];
  const int thread = static_cast<int>(threadIdx.x);
  const int of_strip = thread % kChannels;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChannels;
  for (int i = thread; i < kChannels * kHistogramBins; i += kThreads) found[i] = 0;
  __syncthreads();
  if (first + of_strip < x.channels) {
    const float own = unit[first + of_strip];
    visit_tokens<T>(x, first + of_strip, thread / kChannels, x.tokens, [&](float value) {
      atomicAdd(&found[of_strip * kHistogramBins + histogram_bin(value / own)], 1U);
    });
  }
  __syncthreads();
  const int64_t bins = min_of<int64_t>(x.channels - first, kChannels) * kHistogramBins;
  for (int64_t i = thread; i < bins; i += kThreads) {
    counts[first * kHistogramBins + i] += static_cast<double>(found[i]);
  }
}

/// A token for each block.
template <class T>
__global__ void __launch_bounds__(kThreads) nonfinite_kernel(Activations x, uint64_t* found) {
  const T* token = static_cast<const T*>(x.data) + blockIdx.x * x.stride;
  uint32_t own = 0;
  for (int64_t c = threadIdx.x; c < x.channels; c += kThreads) {
    if (!is_finite(to_float(token[c]))) ++own;
  }
  if (own > 0) add_atomically(found, own);
}

template <template <class> class Launch, class... Arguments>
void launch_for(const Activations& x, const Arguments&... arguments) {
  switch (x.element) {
    case Element::kFloat:
      return Launch<float>::run(x, arguments...);
    case Element::kBFloat16:
      return Launch<BFloat16>::run(x, arguments...);
    case Element::kHalf:
      return Launch<Half>::run(x, arguments...);
  }
}

template <class T>
struct LaunchMoments {
  static void run(const Activations& x, double* sum, double* absolute, double* square,
                  cudaStream_t stream) {
    launch(&moments_kernel<T>, divide_up(x.channels, kChannels), kThreads, 0, stream, x, sum,
           absolute, square);
  }
};

template <class T>
struct LaunchRange {
  static void run(const Activations& x, float* low, float* high, cudaStream_t stream) {
    launch(&range_kernel<T>, divide_up(x.channels, kChannels), kThreads, 0, stream, x, low, high);
  }
};

template <class T>
struct LaunchHistogram {
  static void run(const Activations& x, const float* unit, double* counts, cudaStream_t stream) {
    launch(&histogram_kernel<T>, divide_up(x.channels, kChannels), kThreads, 0, stream, x, unit,
           counts);
  }
};

template <class T>
struct LaunchNonfinite {
  static void run(const Activations& x, uint64_t* found, cudaStream_t stream) {
    launch(&nonfinite_kernel<T>, x.tokens, kThreads, 0, stream, x, found);
  }
};

}  // namespace

void moments_update(const Activations& x, double* sum, double* absolute, double* square,
                    cudaStream_t stream) {
  launch_for<LaunchMoments>(x, sum, absolute, square, stream);
}

void range_update(const Activations& x, float* low, float* high, cudaStream_t stream) {
  launch_for<LaunchRange>(x, low, high, stream);
}

void histogram_update(const Activations& x, const float* unit, double* counts,
                      cudaStream_t stream) {
  launch_for<LaunchHistogram>(x, unit, counts, stream);
}

void count_nonfinite(const Activations& x, int64_t* found, cudaStream_t stream) {
  launch_for<LaunchNonfinite>(x, reinterpret_cast<uint64_t*>(found), stream);
}

}  // namespace mlcalib::cuda
