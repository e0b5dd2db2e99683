// The corners of a batch of points, in shared memory: one thread locates a point, and all threads
// of the block then read its corners.
#pragma once

#include "../core/jitter.h"
#include "../core/simplex.h"
#include "plan.h"
#include "vector.h"

namespace crad {

// A corner along the axes of its table: its entry (counted from the first), its weight, and the
// derivatives of the weight with respect to the table's components.
template <class I, class A, int kSlopes>
struct alignas(corner_alignment(sizeof(I) + (1 + kSlopes) * sizeof(A))) Corner {
  I entry;
  A weight;
  A slope[kSlopes];
};
template <class I, class A>
struct alignas(corner_alignment(sizeof(I) + sizeof(A))) Corner<I, A, 0> {
  I entry;
  A weight;
};

// The entry of a corner outside the grid: below 0, as is the sum of two, or of one with an entry.
template <class I>
constexpr I kOutside = -(I(1) << (8 * sizeof(I) - 2));

// The tables of one point; the corners of a batch's points lie interleaved.
template <class C>
struct PointCorners {
  C* low;
  C* high;
  int stride;
};

template <class I, class A, int kSlopes>
CRAD_DEVICE void set_unit(Corner<I, A, kSlopes>& corner) {
  corner.entry = 0;
  corner.weight = 1;
  if constexpr (kSlopes > 0) CRAD_UNROLL
  for (int column = 0; column < kSlopes; ++column) corner.slope[column] = 1;
}

// A component of a point, on its way to taps: the wrapped base of its padded index, its distance
// from the base, how that moves with the coordinate, and whether it can be of a place, see
// is_place.
template <class X>
struct Component {
  X base, t, slope;
  bool place;
};

// Component d of a point, d = 0, 1 and so on, along an axis of so many entries: `normal` holds the
// jitter of four of them.
template <class X>
CRAD_DEVICE Component<X> component_of(const Problem& problem, int64_t size, int64_t point, int d,
                                      float (&normal)[4]) {
  const int axis = problem.ndim - 1 - d;
  const Padding padding = problem.padding[axis];
  const bool align_corners = problem.align_corners[axis];
  X coord = static_cast<const X*>(problem.coords)[point * problem.ndim + d];
  if (problem.seed) {
    if (d % 4 == 0) jitter_normals(static_cast<uint64_t>(*problem.seed), point, d / 4, normal);
    const float noise = d & 2 ? (d & 1 ? normal[3] : normal[2]) : (d & 1 ? normal[1] : normal[0]);
    coord += static_cast<const X*>(problem.jitter_std)[d] * static_cast<X>(noise);
  }
  const Index<X> raw = unpadded_index(coord, placement_of<X>(size, align_corners, problem.unit));
  const Index<X> index = padded(raw, size, problem.mode, padding, align_corners);
  const X base = base_of(index.at, problem.mode);
  return {wrapped_base(base, size, padding), index.at - base, index.slope, is_place(raw, padding)};
}

// The steps of a walk (core/simplex.h), a byte each: the component that it is along, and whether
// the first and the second tap lie inside.
struct Steps {
  static constexpr int kFirst = 8, kSecond = 16;
  uint64_t bytes = 0;

  CRAD_DEVICE int operator[](int k) const { return static_cast<int>(bytes >> (8 * k) & 255); }
  CRAD_DEVICE void insert(int k, int step) {
    const uint64_t before = (uint64_t{1} << (8 * k)) - 1;
    bytes = (bytes & before) | (bytes & ~before) << 8 | static_cast<uint64_t>(step) << (8 * k);
  }
};
static_assert(kMaxDim <= 8, "a byte for each");

// Fills the table of a point whose corners are those of a simplex. Until it is filled it holds the
// steps of the walk, sorted: the change of the entry, the key, and the slope.
template <class X, bool kStrided, class I, class A, int kSlopes>
CRAD_DEVICE bool locate_simplex(const Problem& problem, int64_t point, Corner<I, A, kSlopes>* table,
                                int stride) {
  int order = 0, differentiated = -1;
  A along = 0;  // the slope of the component that the weights are differentiated along
  float normal[4];
  bool place = true;
  Steps steps;
  I entry = 0;
  int outside = 0;  // taps
  int64_t entries_apart = 1;
  for (int d = 0; d < problem.ndim; ++d) {
    const int axis = problem.ndim - 1 - d;
    const int64_t size = problem.size[axis];
    const Component<X> at = component_of<X>(problem, size, point, d, normal);
    place &= at.place;
    const auto entry_of = [&](int tap) {
      const X position = tap_position(at.base, tap, size, problem.mode, problem.padding[axis],
                                      problem.align_corners[axis]);
      return entry_at(position, size, tap_count(problem.mode));
    };
    const int64_t first = entry_of(0), second = entry_of(1);
    const int64_t apart = kStrided ? problem.stride[axis] : entries_apart;
    const bool first_inside = is_entry(first, size), second_inside = is_entry(second, size);
    entry += static_cast<I>(first * apart);
    outside += !first_inside;
    entries_apart *= size;
    if (order_along(problem, axis) > 0) {
      order += order_along(problem, axis);
      differentiated = d;
      along = static_cast<A>(at.slope);
    }
    Corner<I, A, kSlopes> step;
    step.entry = static_cast<I>((second - first) * apart);
    step.weight = static_cast<A>(walk_key(at.t, second_inside));
    if constexpr (kSlopes > 0) step.slope[0] = static_cast<A>(at.slope);
    int k = d;
    for (; k > 0 && table[(k - 1) * stride].weight < step.weight; --k)
      table[k * stride] = table[(k - 1) * stride];
    table[k * stride] = step;
    steps.insert(k, d | (first_inside ? Steps::kFirst : 0) | (second_inside ? Steps::kSecond : 0));
  }
  A key = 1, slope = 0;  // of the step to the corner
  int component = -1;
  for (int k = 0; k <= problem.ndim; ++k) {
    A next_key = 0, next_slope = 0;
    I change = 0;
    int next = -1, leaves = 0;
    if (k < problem.ndim) {
      const Corner<I, A, kSlopes> step = table[k * stride];
      next_key = step.weight > A(0) ? step.weight : A(0);
      if constexpr (kSlopes > 0) next_slope = step.slope[0];
      change = step.entry;
      next = steps[k] & 7;
      leaves = ((steps[k] & Steps::kFirst) != 0) - ((steps[k] & Steps::kSecond) != 0);
    }
    Corner<I, A, kSlopes> corner;
    corner.entry = outside == 0 ? entry : kOutside<I>;
    const A change_of_weight = component == differentiated ? along
                               : next == differentiated    ? -along
                                                           : A(0);
    corner.weight = order == 0 ? key - next_key : order == 1 ? change_of_weight : A(0);
    if constexpr (kSlopes > 0) CRAD_UNROLL
    for (int column = 0; column < kSlopes; ++column)
      corner.slope[column] = order > 0             ? A(0)
                             : column == component ? slope
                             : column == next      ? -next_slope
                                                   : A(0);
    table[k * stride] = corner;
    entry += change;
    outside += leaves;
    key = next_key;
    slope = next_slope;
    component = next;
  }
  return place;
}

// Fills the tables of a point. Returns whether it is a place, see is_place. Strided: `entry` is not
// the number of an entry but the offset of its first channel from that of the grid, in elements.
template <class X, bool kStrided = false, class I, class A, int kSlopes>
CRAD_DEVICE bool locate(const Problem& problem, const Tables& tables, int64_t point,
                        const PointCorners<Corner<I, A, kSlopes>>& corners) {
  if (problem.simplex) {
    set_unit(*corners.high);
    return locate_simplex<X, kStrided>(problem, point, corners.low, corners.stride);
  }
  const int taps = tap_count(problem.mode);
  float normal[4];
  bool place = true;
  int64_t entries_apart = 1;
  int count = 1;  // corners of the table so far
  set_unit(*corners.low);
  set_unit(*corners.high);
  for (int d = 0; d < problem.ndim; ++d) {
    const int axis = problem.ndim - 1 - d;
    const int64_t size = problem.size[axis];
    const Padding padding = problem.padding[axis];
    const bool align_corners = problem.align_corners[axis];
    const Component<X> at = component_of<X>(problem, size, point, d, normal);
    place &= at.place;
    const int order = order_along(problem, axis);
    const int64_t apart = kStrided ? problem.stride[axis] : entries_apart;
    if (d == tables.low_axes) count = 1;
    Corner<I, A, kSlopes>* const table = d < tables.low_axes ? corners.low : corners.high;
    const int own = d < tables.low_axes ? d : d - tables.low_axes;
    for (int tap = taps - 1; tap >= 0; --tap) {
      const X position = tap_position(at.base, tap, size, problem.mode, padding, align_corners);
      const int64_t entry = entry_at(position, size, taps);
      const bool inside = is_entry(entry, size);
      const A weight = static_cast<A>(tap_weight(problem.mode, order, tap, at.t, at.slope));
      const A slope = kSlopes > 0
                          ? static_cast<A>(tap_weight(problem.mode, order + 1, tap, at.t, at.slope))
                          : A(0);
      for (int k = 0; k < count; ++k) {
        Corner<I, A, kSlopes> corner = table[k * corners.stride];
        corner.entry = inside && corner.entry >= 0 ? corner.entry + static_cast<I>(entry * apart)
                                                   : kOutside<I>;
        corner.weight *= weight;
        if constexpr (kSlopes > 0) CRAD_UNROLL
        for (int column = 0; column < kSlopes; ++column)
          corner.slope[column] *= column == own ? slope : weight;
        table[(tap * count + k) * corners.stride] = corner;
      }
    }
    count *= taps;
    entries_apart *= size;
  }
  return place;
}

// Read at once: the compiler would read the entry first, and wait to see whether it lies outside.
template <class C>
CRAD_DEVICE C whole(const C* corner) {
  using Piece = Transfer<alignof(C)>;
  Piece piece[sizeof(C) / sizeof(Piece)];
  CRAD_UNROLL
  for (size_t i = 0; i < sizeof(C) / sizeof(Piece); ++i)
    piece[i] = reinterpret_cast<const Piece*>(corner)[i];
  C copy;
  memcpy(static_cast<void*>(&copy), piece, sizeof(C));
  return copy;
}

// The neighbouring threads that share a point. Each group of a block takes its own points.
struct Group {
  int lane;   // of this thread in its group
  int index;  // of the group in its block
  int count;  // of the groups of the block

  CRAD_DEVICE explicit Group(int lanes)
      : lane(threadIdx.x % lanes), index(threadIdx.x / lanes), count(blockDim.x / lanes) {}
  CRAD_DEVICE explicit Group(const Plan& plan) : Group(plan.lanes) {}
};

// The tables of a batch of points, and whether each is a place.
template <class C>
struct Batch {
  Tables tables;
  int points;
  C* low;
  C* high;
  bool* place;

  CRAD_DEVICE Batch(const Tables& tables, int points, char* memory)
      : tables(tables),
        points(points),
        low(reinterpret_cast<C*>(memory)),
        high(low + tables.low * points),
        place(reinterpret_cast<bool*>(high + tables.high * points)) {}

  CRAD_DEVICE C low_corner(int k, int point) const { return whole(low + k * points + point); }
  CRAD_DEVICE C high_corner(int k, int point) const { return whole(high + k * points + point); }

  // Locates `count` points from `first` on, by all threads of the block.
  template <class X, bool kStrided = false>
  CRAD_DEVICE void fill(const Problem& problem, int64_t first, int count) {
    __syncthreads();  // the former batch may still be read
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      place[i] = locate<X, kStrided>(problem, tables, first + i,
                                     PointCorners<C>{low + i, high + i, points});
    __syncthreads();
  }
};

// Some corners of a point, V channels of each. All loads are on their way before the first value is
// used; where a corner lies outside the grid, or there is none, everything but the entry is 0.
template <int V, class C, class T>
struct Gathered {
  static constexpr int kCorners = 4;
  using A = accumulator<T>;
  C corner[kCorners];
  Pack<A, V> value[kCorners];

  // Those of the low table from `first` on, before `end`, with one of the high table; their values
  // (if wanted) lie at rows + entry * pitch.
  CRAD_DEVICE Gathered(const Batch<C>& batch, int point, int first, int end, const C& high,
                       const T* rows, int64_t pitch, bool want_values) {
    CRAD_UNROLL
    for (int i = 0; i < kCorners; ++i) {
      corner[i] = C{};
      corner[i].entry = -1;
      value[i] = filled<A, V>(0);
      if (first + i >= end) continue;
      const C low = batch.low_corner(first + i, point);
      if (low.entry + high.entry < 0) continue;
      corner[i] = low;
      corner[i].entry += high.entry;
      if (want_values) value[i] = load<V>(rows + corner[i].entry * pitch);
    }
  }
};

}  // namespace crad
