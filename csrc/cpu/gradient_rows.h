// The rows of the output's gradient that the points of a block have, whatever its strides.
#pragma once

#include "block.h"
#include "kernels.h"
#include "transpose.h"

namespace crad {
namespace {

// Read in place where the channels of a row follow each other, or else packed.
template <class T>
class GradientRows {
 public:
  GradientRows(const Problem& problem, const Range& range, const Gradients& gradients)
      : strides_(gradients.grad_output_strides),
        channels_(problem.channels),
        wanted_(range.channel_end - range.channel_begin),
        first_(static_cast<const T*>(gradients.grad_output) +
               range.channel_begin * (strides_ ? strides_->step : 1)),
        packed_(strides_ && strides_->step != 1 ? kLanes * wanted_ : 0) {}

  void fetch(const int64_t (&point)[kLanes]) {
    if (!strides_) {
      for (int i = 0; i < kLanes; ++i) row_[i] = first_ + point[i] * channels_;
      return;
    }
    int64_t offset[kLanes];
    offsets_of(*strides_, point, offset);
    if (strides_->step == 1)
      for (int i = 0; i < kLanes; ++i) row_[i] = first_ + offset[i];
    else
      pack(offset);
  }

  // That of a point of the block, from the first channel of the range on.
  const T* operator[](int i) const { return row_[i]; }

  // Asks for the start of a row ahead of its use.
  void prefetch(int64_t point) const {
    if (!strides_) __builtin_prefetch(first_ + point * channels_);
  }

 private:
  void pack(const int64_t (&offset)[kLanes]) {
    bool follow = true;
    for (int i = 1; i < kLanes; ++i) follow &= offset[i] == offset[0] + i;
    if (follow) {
      transpose_matrix(sizeof(T), first_ + offset[0], strides_->step, wanted_, kLanes,
                       packed_.get(), wanted_);
      for (int i = 0; i < kLanes; ++i) row_[i] = packed_.get() + i * wanted_;
    }
    for (int i = 0; !follow && i < kLanes; ++i) {
      // Points that share a row follow each other, as do those of a sum.
      if (i > 0 && offset[i] == offset[i - 1]) {
        row_[i] = row_[i - 1];
        continue;
      }
      T* const to = packed_.get() + i * wanted_;
      row_[i] = to;
      if (i == 0 && offset[0] == first_packed_) continue;
      const T* const from = first_ + offset[i];
      for (int64_t c = 0; c < wanted_; ++c) to[c] = from[c * strides_->step];
    }
    first_packed_ = offset[0];
  }

  const RowStrides* const strides_;  // null: contiguous
  const int64_t channels_, wanted_;
  const T* const first_;
  Buffer<T> packed_;
  const T* row_[kLanes];
  int64_t first_packed_ = -1;  // the offset of the row that the buffer begins with
};

}  // namespace
}  // namespace crad
