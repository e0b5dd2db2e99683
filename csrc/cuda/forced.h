// CRAD_KERNELS_PLAN: choices of a plan that are made by hand, to time them against each other, such
// as "family=memory,tile=64".
#pragma once

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "plan.h"

namespace crad {

inline Forced forced_plan() {
  Forced forced;
  const char* const text = std::getenv("CRAD_KERNELS_PLAN");
  if (!text || !*text) return forced;
  const std::pair<const char*, int64_t*> choices[] = {
      {"vector", &forced.vector},  {"tile", &forced.tile},       {"chunks", &forced.chunks},
      {"batch", &forced.batch},    {"threads", &forced.threads}, {"groups", &forced.groups},
      {"columns", &forced.columns}};
  const std::pair<const char*, Family> families[] = {{"chip", Family::on_chip},
                                                     {"cell", Family::by_cell},
                                                     {"memory", Family::in_memory},
                                                     {"planes", Family::planes}};
  std::istringstream words(std::string(text) + ',');  // a comma ends each
  for (std::string word; std::getline(words, word, ',');) {
    std::istringstream parts(word);
    std::string name, value;
    std::getline(std::getline(parts, name, '='), value);
    bool known = false;
    for (const auto& [called, family] : families)
      if (name == "family" && value == called) {
        forced.family = family;
        known = true;
      }
    for (const auto& [choice, number] : choices)
      if (name == choice) {
        char* rest;
        *number = std::strtoll(value.c_str(), &rest, 10);
        known = *number > 0 && !*rest;
      }
    if (!known)
      throw std::runtime_error(
          "CRAD_KERNELS_PLAN: expected family=chip, family=cell, family=memory, family=planes, or "
          "one of vector, tile, chunks, batch, threads, groups and columns with a positive number, "
          "joined by commas, but got '" +
          word + "'");
  }
  return forced;
}

// Raises unless a device can run a plan.
inline void check_plan(const Plan& plan, const Device& device) {
  const bool lanes =
      plan.lanes > 0 && (plan.threads % plan.lanes == 0 || plan.lanes > plan.threads);
  if (plan.tile_channels > 0 && plan.shared <= device.block_bytes &&
      plan.threads <= device.threads && plan.threads % kWarp == 0 && lanes &&
      plan.tile_channels % plan.vector == 0)
    return;
  throw std::runtime_error("CRAD_KERNELS_PLAN: this call cannot be cut that way on this device: " +
                           std::to_string(plan.shared) + " bytes of shared memory, " +
                           std::to_string(plan.threads) + " threads, tiles of " +
                           std::to_string(plan.tile_channels) + " channels");
}

}  // namespace crad
