// The launches by the type of the values, and those that have none.
#include "../core/jitter.h"
#include "kernels.h"
#include "launch.h"
#include "sorted.h"
#include "sums.h"

namespace crad {
namespace {

// Calls f with the kernels of the type.
template <class F>
auto with_kernels(ValueType type, F f) {
  switch (type) {
    case ValueType::float64:
      return f(Kernels<double>());
    case ValueType::float32:
      return f(Kernels<float>());
    case ValueType::bfloat16:
      return f(Kernels<bfloat16>());
    default:
      return f(Kernels<float16>());
  }
}

}  // namespace

void launch_sample(const Problem& problem, Stream stream, void* output) {
  with_kernels(problem.value_type, [&](auto kernels) { kernels.sample(problem, stream, output); });
}

BackwardPlan plan_backward(const Problem& problem, const void* grad_output, bool want_values,
                           bool want_coords) {
  return with_kernels(problem.value_type, [&](auto kernels) {
    return kernels.plan_backward(problem, grad_output, want_values, want_coords);
  });
}

void launch_backward(const Problem& problem, const BackwardPlan& plan, Stream stream,
                     const void* grad_output, void* value_parts, void* coord_parts) {
  with_kernels(problem.value_type, [&](auto kernels) {
    kernels.backward(problem, plan, stream, grad_output, value_parts, coord_parts);
  });
}

int64_t contributions_of_a_point(const Problem& problem) {
  const Tables tables = tables_of(problem.ndim, problem.mode);
  return static_cast<int64_t>(tables.low) * tables.high;
}

int64_t pieces_of(int64_t contributions) { return ceil_div(contributions, kPiece); }

void launch_list_contributions(const Problem& problem, Stream stream, int64_t first, int64_t points,
                               int64_t* entries, void* weights) {
  const auto run = [&](auto coord, auto sum) {
    using X = decltype(coord);
    using A = decltype(sum);
    using C = Corner<int64_t, A, 0>;
    Plan plan{};
    plan.tables = tables_of(problem.ndim, problem.mode);
    plan.batch = batch_of<C>(plan.tables, shared_of_a_block(current_device()) / 2, kThreads);
    launch(list_contributions<X, A>, ceil_div(points, plan.batch), kThreads,
           Batch<C>::bytes(plan.tables, plan.batch), stream, problem, plan, first, points, entries,
           static_cast<A*>(weights));
  };
  const bool wide = problem.value_type == ValueType::float64;
  if (problem.coord_type == CoordType::float64)
    wide ? run(double(), double()) : run(double(), float());
  else
    wide ? run(float(), double()) : run(float(), float());
}

void launch_add_contributions(const Problem& problem, Stream stream, int64_t first, int64_t points,
                              const int64_t* entries, const int64_t* order, const void* weights,
                              const void* grad_output, void* grad_values, void* rests) {
  with_kernels(problem.value_type, [&](auto kernels) {
    kernels.add_contributions(problem, stream, first, points, entries, order, weights, grad_output,
                              grad_values, rests);
  });
}

void launch_sum_values(const Problem& problem, Stream stream, const void* parts, int64_t number,
                       int64_t count, void* to) {
  with_kernels(problem.value_type,
               [&](auto kernels) { kernels.sum_values(stream, parts, number, count, to); });
}

void launch_sum_coords(const Problem& problem, Stream stream, const void* parts, int64_t number,
                       int64_t count, void* to) {
  const bool wide = problem.value_type == ValueType::float64;
  if (problem.coord_type == CoordType::float64)
    wide ? launch_sum<double, double>(parts, number, count, stream, to)
         : launch_sum<double, float>(parts, number, count, stream, to);
  else
    wide ? launch_sum<float, double>(parts, number, count, stream, to)
         : launch_sum<float, float>(parts, number, count, stream, to);
}

// ---- the jitter by itself ----

CRAD_KERNEL(kBlocks)
philox_words(const int64_t* counter, const int64_t* key, int64_t number, int64_t* words) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= number) return;
  Words in;
  for (int w = 0; w < 4; ++w) in.word[w] = static_cast<uint32_t>(counter[4 * i + w]);
  const Words out =
      philox(in, static_cast<uint32_t>(key[2 * i]) | static_cast<uint64_t>(key[2 * i + 1]) << 32);
  for (int w = 0; w < 4; ++w) words[4 * i + w] = out.word[w];
}

void launch_philox(Stream stream, const int64_t* counter, const int64_t* key, int64_t number,
                   int64_t* words) {
  launch(philox_words, ceil_div(number, kThreads), kThreads, 0, stream, counter, key, number,
         words);
}

CRAD_KERNEL(kBlocks)
normals_of_points(const int64_t* seed, int64_t points, int ndim, float* normals) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (p >= points) return;
  for (int d = 0; d < ndim; d += 4) {
    float normal[4];
    jitter_normals(static_cast<uint64_t>(*seed), p, d / 4, normal);
    CRAD_UNROLL
    for (int i = 0; i < 4; ++i)
      if (d + i < ndim) normals[p * ndim + d + i] = normal[i];
  }
}

void launch_normals(Stream stream, const int64_t* seed, int64_t points, int ndim, float* normals) {
  launch(normals_of_points, ceil_div(points, kThreads), kThreads, 0, stream, seed, points, ndim,
         normals);
}

}  // namespace crad
