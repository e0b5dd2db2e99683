// What the operators of several levels take: see operator/level_call.h.
#pragma once

#include <cstdint>

namespace crad {

constexpr int kMostLevelAxes = 4;
constexpr int64_t kMostLevelChannels = 8;

}  // namespace crad
