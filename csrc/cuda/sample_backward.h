// The operator sample_backward, for what is composed of it.
#pragma once

#include <tuple>

#include "../operator/call.h"

namespace crad {

// The gradients of sum(grad_output * sample(values, coords)) with respect to values and coords; an
// empty tensor for the one that is not wanted.
std::tuple<Tensor, Tensor> sample_backward(const Tensor& grad_output, const Tensor& values,
                                           const Tensor& coords, const std::optional<Tensor>& seed,
                                           const std::optional<Tensor>& jitter_std, int64_t options,
                                           bool want_values, bool want_coords);

}  // namespace crad
