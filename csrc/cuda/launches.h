// The launches of the kernels for one type of values. Each type is compiled in a file of its own.
#pragma once

#include "plan_in_order.h"
#include "vector.h"

namespace crad {

template <class T>
struct Launches {
  static void sample(const Problem& problem, const Plan& plan, Stream stream,
                     const PointStrides& strides, void* output);
  // The parts are (parts, *shape of the gradient), of the type that sums of values are taken in;
  // null: not wanted.
  static void backward(const Problem& problem, const Plan& plan, Stream stream,
                       const void* grad_output, void* value_parts, void* coord_parts);
  // For values that are not channels last.
  static void backward_planes(const Problem& problem, const Plan& plan, Stream stream,
                              const PointStrides& strides, const void* grad_output,
                              void* grad_values, void* coord_parts);
  // Adds the items of points from `first` on to the gradient of the values, in the order of
  // `sorted_keys`; `numbers` of items go with them.
  static void add_in_order(const Problem& problem, const Plan& plan, const Order& order,
                           Stream stream, int64_t first, int64_t points, void* sorted_keys,
                           const int64_t* numbers, const void* grad_output, void* grad_values,
                           void* rests);
};

}  // namespace crad
