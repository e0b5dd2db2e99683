// The walks of a batch of points along the edges of their simplices: see csrc/core/simplex.h.
// Points are lanes, and their axes are sorted by a network of exchanges, the same for all of them.
#pragma once

#include "../core/simplex.h"
#include "locate.h"

namespace crad {
namespace {

template <class X>
struct Walk {
  // Of every step, from 0 on: the t of its axis, or -1 for 0; the axis, and by how much the offset
  // changes.
  PerPoint<X> key[kMaxDim];
  PerPoint<int32_t> axis[kMaxDim];
  PerPoint<int64_t> change[kMaxDim];

  // Of points that are located along all axes.
  __attribute__((noinline)) void set(const Problem& problem, const Batch<X>& batch) {
    const int last = problem.ndim - 1;
    for (int j = 0; j <= last; ++j) {
      const int along = last - j;  // the lower component first
      const bool follow = taps_follow_each_other(problem.mode, problem.padding[along]);
      const int64_t stride = problem.stride[along];
      const uint32_t second = tap_bit(along, 1);
      for (int i = 0; i < kBatch; ++i) {
        key[j][i] = walk_key(batch.t[along][i], (batch.inside[i] & second) != 0);
        axis[j][i] = along;
      }
      if (follow)
        for (int i = 0; i < kBatch; ++i) change[j][i] = stride;
      else
        for (int i = 0; i < kBatch; ++i)
          change[j][i] = batch.offset[along][1][i] - batch.offset[along][0][i];
    }
    for (int j = 1; j <= last; ++j)
      for (int k = j; k > 0; --k) sort(k - 1, k);
  }

  // Sets the weights of the corners, differentiated once along an axis, or (-1) not at all.
  template <class A>
  __attribute__((noinline)) void weigh(const Problem& problem, const Batch<X>& batch,
                                       int differentiated, PerPoint<A>* weight) const {
    const int steps = problem.ndim;
    if (differentiated < 0) {
      for (int i = 0; i < kBatch; ++i) weight[0][i] = static_cast<A>(1 - t(0, i));
      for (int k = 1; k < steps; ++k)
        for (int i = 0; i < kBatch; ++i) weight[k][i] = static_cast<A>(t(k - 1, i) - t(k, i));
      for (int i = 0; i < kBatch; ++i) weight[steps][i] = static_cast<A>(t(steps - 1, i));
      return;
    }
    for (int i = 0; i < kBatch; ++i) weight[0][i] = 0;
    for (int k = 0; k < steps; ++k)
      for (int i = 0; i < kBatch; ++i) {
        const bool along = axis[k][i] == differentiated;
        const A slope = along ? static_cast<A>(batch.slope[differentiated][i]) : A(0);
        weight[k][i] -= slope;
        weight[k + 1][i] = slope;
      }
  }

  // The derivative along an axis of the sum over the corners of weight * dot.
  template <class A>
  PerPoint<A> slope(const Problem& problem, const Batch<X>& batch, int along,
                    const Buffer<PerPoint<A>>& dot) const {
    PerPoint<A> total = {};
    for (int k = 0; k < problem.ndim; ++k)
      for (int i = 0; i < kBatch; ++i)
        total[i] = axis[k][i] == along ? dot[k + 1][i] - dot[k][i] : total[i];
    for (int i = 0; i < kBatch; ++i) total[i] *= static_cast<A>(batch.slope[along][i]);
    return total;
  }

 private:
  X t(int step, int i) const { return key[step][i] > X(0) ? key[step][i] : X(0); }

  // Step j comes before step k; equal ones stay as they are.
  void sort(int j, int k) {
    PerPoint<int32_t> exchanged;
    for (int i = 0; i < kBatch; ++i) exchanged[i] = key[k][i] > key[j][i];
    const auto exchange = [&](auto& of_j, auto& of_k) __attribute__((always_inline)) {
      for (int i = 0; i < kBatch; ++i) {
        const auto a = of_j[i], b = of_k[i];
        of_j[i] = exchanged[i] ? b : a;
        of_k[i] = exchanged[i] ? a : b;
      }
    };
    exchange(key[j], key[k]);
    exchange(axis[j], axis[k]);
    exchange(change[j], change[k]);
  }
};

}  // namespace
}  // namespace crad
