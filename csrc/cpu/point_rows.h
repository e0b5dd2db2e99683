// Where the rows of points lie in memory: those of the output, and those of its gradient, whatever
// its strides.
#pragma once

#include "locate.h"
#include "transpose.h"

namespace crad {
namespace {

// The grid that the points of a range lie in.
template <class T>
const T* grid_of(const Problem& problem, const Range& range) {
  const int64_t item = range.point_begin / problem.points_per_grid;  // in any order of its own
  return static_cast<const T*>(problem.values) + item * problem.grid_stride;
}

// The row of a point's result, from channel 0 on.
template <class T>
CRAD_INLINE T* row_of(const Output& output, int64_t point) {
  return static_cast<T*>(output.data) + (point - output.first_point) * output.row -
         output.first_channel;
}

// The rows of grad_output of the points of a batch: read in place where their channels follow each
// other, or else packed.
template <class T>
class GradOutputRows {
 public:
  GradOutputRows(const Problem& problem, const Range& range, const Gradients& gradients)
      : strides_(gradients.grad_output_strides),
        channels_(problem.channels),
        wanted_(range.channel_end - range.channel_begin),
        first_(static_cast<const T*>(gradients.grad_output) +
               range.channel_begin * (strides_ ? strides_->step : 1)),
        packed_(strides_ && strides_->step != 1 ? kBatch * wanted_ : 0) {}

  void fetch(const int64_t (&point)[kBatch]) {
    if (!strides_) {
      for (int i = 0; i < kBatch; ++i) row_[i] = first_ + point[i] * channels_;
      return;
    }
    int64_t offset[kBatch];
    offsets_of(*strides_, point, offset);
    if (strides_->step == 1)
      for (int i = 0; i < kBatch; ++i) row_[i] = first_ + offset[i];
    else
      pack(offset);
  }

  // That of a point of the batch, from the first channel of the range on.
  const T* operator[](int i) const { return row_[i]; }

  // Asks for the start of a row ahead of its use; not where it would take a division to find it.
  // (Inlined by force: GCC drops calls of a function that does nothing else.)
  CRAD_ALWAYS_INLINE void prefetch(int64_t point) const {
    if (!strides_)
      __builtin_prefetch(first_ + point * channels_);
    else if (strides_->axes == 1)
      __builtin_prefetch(first_ + point * strides_->stride[0]);
  }

 private:
  __attribute__((noinline)) void pack(const int64_t (&offset)[kBatch]) {
    bool same = true, follow = true;
    for (int i = 1; i < kBatch; ++i) {
      same &= offset[i] == offset[0];
      follow &= offset[i] == offset[0] + i;
    }
    const T* const from = first_;
    T* const to = packed_.get();
    const int64_t step = strides_->step;
    for (int i = 0; i < kBatch; ++i) row_[i] = to + (same ? 0 : i * wanted_);
    if (same && offset[0] == only_packed_) return;
    only_packed_ = same ? offset[0] : -1;
    if (follow)
      return transpose_matrix(sizeof(T), from + offset[0], step, wanted_, kBatch, to, wanted_);
    // Channel by channel: those of a row may all fall into one set of a cache.
    const int rows = same ? 1 : kBatch;
    for (int64_t c = 0, wanted = wanted_; c < wanted; ++c)
      for (int i = 0; i < rows; ++i) to[i * wanted + c] = from[offset[i] + c * step];
  }

  const RowStrides* const strides_;  // null: contiguous
  const int64_t channels_, wanted_;
  const T* const first_;
  Buffer<T> packed_;
  const T* row_[kBatch];
  int64_t only_packed_ = -1;  // the offset of the one row in the buffer, if there is one
};

// Asks for what the batch after the one from number `first` on needs, where points are in an order
// of their own. (Inlined by force, see above.)
template <class X, class T>
CRAD_INLINE void prefetch_next(const Problem& problem, const Range& range, int64_t first,
                               const Gradients& gradients, const GradOutputRows<T>& rows) {
  if (!range.order || first + 2 * kBatch > range.point_end) return;
  for (int i = 0; i < kBatch; ++i) {
    const int64_t point = range.order[first + kBatch + i], coords = point * problem.ndim;
    if (!problem.coords_strides) __builtin_prefetch(static_cast<const X*>(problem.coords) + coords);
    rows.prefetch(point);
    if (gradients.grad_coords)
      __builtin_prefetch(static_cast<X*>(gradients.grad_coords) + coords, 1);
  }
}

}  // namespace
}  // namespace crad
