// Planes of channels made rows of channels and back, a square of a vector's width at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "simd.h"

// A vector of lanes of two, those of the second numbered after those of the first.
#if defined(__clang__) || __GNUC__ > 11
#define CRAD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CRAD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a < b){__VA_ARGS__})
#endif

namespace crad {
namespace {

template <class Element, int size = CRAD_VECTOR_BYTES / sizeof(Element)>
struct Square {
  static constexpr int width = size;
  typedef Element Vector __attribute__((vector_size(size * sizeof(Element))));
  Vector row[width];

  // In every round the rows of the second half are dealt between those of the first, lane by lane;
  // after log2(width) rounds, rows are columns.
  void transpose() { transpose(std::make_integer_sequence<int, width>()); }

 private:
  template <int... lane>
  void transpose(std::integer_sequence<int, lane...>) {
    constexpr int half = width / 2;
#pragma GCC unroll 8
    for (int round = 1; round < width; round *= 2) {
      Vector dealt[width];
#pragma GCC unroll 16
      for (int k = 0; k < half; ++k) {
        const Vector a = row[k], b = row[k + half];
        dealt[2 * k] = CRAD_SHUFFLE(a, b, (lane / 2 + lane % 2 * width)...);
        dealt[2 * k + 1] = CRAD_SHUFFLE(a, b, (half + lane / 2 + lane % 2 * width)...);
      }
#pragma GCC unroll 32
      for (int k = 0; k < width; ++k) row[k] = dealt[k];
    }
  }
};

// from[i * from_stride + k] to to[k * to_stride + i], for i < rows and k < columns.
template <class Element>
void transpose_square(const Element* from, int64_t from_stride, Element* to, int64_t to_stride) {
  Square<Element> square;
#pragma GCC unroll 32
  for (int i = 0; i < square.width; ++i)
    memcpy(&square.row[i], from + i * from_stride, sizeof(square.row[i]));
  square.transpose();
#pragma GCC unroll 32
  for (int i = 0; i < square.width; ++i)
    memcpy(to + i * to_stride, &square.row[i], sizeof(square.row[i]));
}

// Of few rows or columns, as constants: the compiler makes vector code of it.
template <int few, class Element>
void transpose_few_rows(const Element* from, int64_t from_stride, Element* to, int64_t columns) {
  for (int64_t k = 0; k < columns; ++k)
    for (int i = 0; i < few; ++i) to[k * few + i] = from[i * from_stride + k];
}

template <int few, class Element>
void transpose_few_columns(const Element* from, int64_t rows, Element* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int k = 0; k < few; ++k) to[k * to_stride + i] = from[i * few + k];
}

template <class Element>
void transpose_part(const Element* from, int64_t from_stride, int64_t rows, int64_t columns,
                    Element* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < columns; ++k) to[k * to_stride + i] = from[i * from_stride + k];
}

template <class Element>
void transpose_elements(const Element* from, int64_t from_stride, int64_t rows, int64_t columns,
                        Element* to, int64_t to_stride) {
  constexpr int width = Square<Element>::width;
  if (to_stride == rows &&
      with_small(rows, [&](auto few) { transpose_few_rows<few>(from, from_stride, to, columns); }))
    return;
  if (from_stride == columns &&
      with_small(columns, [&](auto few) { transpose_few_columns<few>(from, rows, to, to_stride); }))
    return;
  const int64_t whole_rows = rows / width * width, whole_columns = columns / width * width;
  for (int64_t i = 0; i < whole_rows; i += width)
    for (int64_t k = 0; k < whole_columns; k += width)
      transpose_square(from + i * from_stride + k, from_stride, to + k * to_stride + i, to_stride);
  transpose_part(from + whole_columns, from_stride, whole_rows, columns - whole_columns,
                 to + whole_columns * to_stride, to_stride);
  transpose_part(from + whole_rows * from_stride, from_stride, rows - whole_rows, columns,
                 to + whole_rows, to_stride);
}

// A matrix of `rows` rows, their first elements `from_stride` elements apart, and so the result's.
inline void transpose_matrix(int64_t element_bytes, const void* from, int64_t from_stride,
                             int64_t rows, int64_t columns, void* to, int64_t to_stride) {
  const auto elements = [&](auto element) {
    using Element = decltype(element);
    transpose_elements(static_cast<const Element*>(from), from_stride, rows, columns,
                       static_cast<Element*>(to), to_stride);
  };
  switch (element_bytes) {
    case 2:
      return elements(uint16_t());
    case 4:
      return elements(uint32_t());
    default:
      return elements(uint64_t());
  }
}

}  // namespace
}  // namespace crad
