// Simplex interpolation, as crad_kernels/reference.py specifies it (Kuhn's triangulation of the
// cube; Rovatti et al., IEEE Trans. Computers 1998; in 3-D the tetrahedral one of Kasson et al.,
// 1995). Corner k is where the walk is after k steps; its weight is the t of step k less that of
// step k + 1.
#pragma once

#include "problem.h"

namespace crad {
namespace {

// What the axes of a point are sorted by; where it is equal, the lower component comes first. The
// walk leaves the grid last: of axes with t = 0, those come last that have no second tap.
template <class X>
CRAD_INLINE X walk_key(X t, bool second_inside) {
  return ((t > X(0)) | second_inside) ? t : X(-1);
}

// How often the weights of all axes together are differentiated. Those of a simplex are linear in
// every t, and each t is in a term of its own: all derivatives but the first are 0.
CRAD_INLINE int order_of(const Problem& problem) {
  int order = 0;
  for (int axis = 0; axis < problem.ndim; ++axis) order += order_along(problem, axis);
  return order;
}

}  // namespace
}  // namespace crad
