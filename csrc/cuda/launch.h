// What the operators ask of the kernels: device memory in, launches out, all on one stream.
#pragma once

#include "plan.h"

namespace crad {

void launch_sample(const Problem& problem, Stream stream, void* output);

// How a backward pass is cut, and how many partial results that leaves, to be summed afterwards.
struct BackwardPlan {
  Plan plan;
  bool on_chip;  // blocks own what they add to; else the gradient of the values must be zero before
  int vector;    // channels of a thread
  int64_t value_parts, coord_parts;
};
BackwardPlan plan_backward(const Problem& problem, const void* grad_output, bool want_values,
                           bool want_coords);

// The parts are (parts, *shape of the gradient), of the type that sums of values are taken in;
// null: not wanted.
void launch_backward(const Problem& problem, const BackwardPlan& plan, Stream stream,
                     const void* grad_output, void* value_parts, void* coord_parts);

// The gradient of the values without atomic additions, in two steps with a sort between them: see
// sorted.h. The points are those of a range.
int64_t contributions_of_a_point(const Problem& problem);
// The pieces of a list of so many, for each of which `rests` has a row of channels.
int64_t pieces_of(int64_t contributions);
void launch_list_contributions(const Problem& problem, Stream stream, int64_t first, int64_t points,
                               int64_t* entries, void* weights);
void launch_add_contributions(const Problem& problem, Stream stream, int64_t first, int64_t points,
                              const int64_t* entries, const int64_t* order, const void* weights,
                              const void* grad_output, void* grad_values, void* rests);

// Sums `number` arrays of `count` sums of values, one behind the other, rounded to the type of the
// values, or of the coordinates.
void launch_sum_values(const Problem& problem, Stream stream, const void* parts, int64_t number,
                       int64_t count, void* to);
void launch_sum_coords(const Problem& problem, Stream stream, const void* parts, int64_t number,
                       int64_t count, void* to);

void launch_philox(Stream stream, const int64_t* counter, const int64_t* key, int64_t number,
                   int64_t* words);
void launch_normals(Stream stream, const int64_t* seed, int64_t points, int ndim, float* normals);

}  // namespace crad
