// Channels-first tensors made channels last: torch's own copy runs on one thread, and takes longer
// than the sampling.
#pragma once

#include "empty.h"

namespace crad {
namespace {

// A dense tensor seen as (outer, rows, channels), whose memory is in the order (outer, channels,
// rows).
struct ChannelsFirst {
  int64_t outer, rows, channels;
};

std::optional<ChannelsFirst> channels_first(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  for (int64_t batch_axes = 0; batch_axes <= 1 && batch_axes < last; ++batch_axes) {
    ChannelsFirst seen{1, 1, tensor.size(last)};
    bool fits = true;
    for (int64_t axis = last - 1; axis >= batch_axes; --axis) {
      fits &= tensor.stride(axis) == seen.rows;
      seen.rows *= tensor.size(axis);
    }
    fits &= tensor.stride(last) == seen.rows;
    if (batch_axes == 1) {
      fits &= tensor.stride(0) == seen.rows * seen.channels;
      seen.outer = tensor.size(0);
    }
    if (fits) return seen;
  }
  return std::nullopt;
}

template <class Element>
void transpose(const ChannelsFirst& shape, const void* from, void* to) {
  // Rows that are written while they lie in the nearest cache; read in runs, since the channels lie
  // a power of two apart in many an image, and so would compete for the same lines.
  constexpr int64_t kBytes = 16 * 1024, kFewestRows = 16;
  const auto* const source = static_cast<const Element*>(from);
  auto* const target = static_cast<Element*>(to);
  const int64_t rows = shape.rows, channels = shape.channels;
  const int64_t fitting = kBytes / (static_cast<int64_t>(sizeof(Element)) * channels);
  const int64_t run = fitting < kFewestRows ? kFewestRows : fitting;
  const int64_t pieces = (rows + run - 1) / run;
  torch::stable::parallel_for(0, shape.outer * pieces, 8, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t start = piece / pieces * rows * channels;
      const int64_t begin = piece % pieces * run;
      const int64_t end = begin + run < rows ? begin + run : rows;
      for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t row = begin; row < end; ++row)
          target[start + row * channels + channel] = source[start + channel * rows + row];
    }
  });
}

// The tensor itself if it is contiguous, or else a contiguous copy.
Tensor packed(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  const std::optional<ChannelsFirst> shape = channels_first(tensor);
  if (!shape || tensor.numel() == 0) return dense(tensor);
  const std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().end());
  const Tensor copy = empty(tensor, sizes, tensor.scalar_type());
  switch (bytes_of(tensor.scalar_type())) {
    case 2:
      transpose<uint16_t>(*shape, tensor.data_ptr(), copy.data_ptr());
      break;
    case 4:
      transpose<uint32_t>(*shape, tensor.data_ptr(), copy.data_ptr());
      break;
    default:
      transpose<uint64_t>(*shape, tensor.data_ptr(), copy.data_ptr());
  }
  return copy;
}

}  // namespace
}  // namespace crad
