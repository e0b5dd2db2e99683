// The launches of launch.h for one type of values. Each type is compiled in a file of its own.
#pragma once

#include "launch.h"
#include "numbers.h"

namespace crad {

template <class T>
struct Kernels {
  static void sample(const Problem& problem, Stream stream, void* output);
  static BackwardPlan plan_backward(const Problem& problem, const void* grad_output,
                                    bool want_values, bool want_coords);
  static void backward(const Problem& problem, const BackwardPlan& backward, Stream stream,
                       const void* grad_output, void* value_parts, void* coord_parts);
  static void add_contributions(const Problem& problem, Stream stream, int64_t first,
                                int64_t points, const int64_t* entries, const int64_t* order,
                                const void* weights, const void* grad_output, void* grad_values,
                                void* rests);
  static void sum_values(Stream stream, const void* parts, int64_t number, int64_t count, void* to);
};

}  // namespace crad
