// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mlcalib/statistic.hpp>

namespace mlcalib {

using StatisticFactory = std::unique_ptr<Statistic> (*)(std::string name, int64_t channels);

bool register_statistic(const char* name, StatisticFactory factory);

/// Ends the file of a statistic: registers its class under `name`.
#define MLCALIB_STATISTIC(name, Class)                                                 \
  const bool registered_##Class = register_statistic(                                  \
      name, [](std::string own_name, int64_t channels) -> std::unique_ptr<Statistic> { \
        return std::make_unique<Class>(std::move(own_name), channels);                 \
      })

}  // namespace mlcalib
