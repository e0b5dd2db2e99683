// Numbers as they are stored, and as sums are taken of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "macros.h"

namespace crad {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that sums are taken in.
template <class T>
using accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

namespace {

CRAD_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CRAD_INLINE constexpr int64_t round_up(int64_t a, int64_t multiple) {
  return ceil_div(a, multiple) * multiple;
}

template <class To, class From>
CRAD_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Halves to float and back. A half is the lower half of a 32-bit word; words and floats may be
// vectors of these. The first argument names the format.
template <class Float, class Word>
CRAD_INLINE Float widened(bfloat16, Word half) {
  return bit_cast<Float>(half << 16);
}

template <class Float, class Word>
CRAD_INLINE Float widened(float16, Word half) {
  const Word magnitude = (half & 0x7FFF) << 13;
  // The exponent's bias differs by 112; the product is exact, also for subnormal halves.
  const Float scaled = bit_cast<Float>(magnitude) * 0x1p112f;
  const Word special = magnitude >= 0x0F800000 ? Word{} + 0x7F800000 : Word{};
  return bit_cast<Float>(bit_cast<Word>(scaled) | special | ((half & 0x8000) << 16));
}

// To nearest, half to even; NaN stays NaN.
template <class Word, class Float>
CRAD_INLINE Word narrowed(bfloat16, Float wide) {
  const Word bits = bit_cast<Word>(wide);
  const Word rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return wide == wide ? rounded : Word{} + 0x7FC0;
}

// To nearest, half to even; overflow to infinity, NaN stays NaN.
template <class Word, class Float>
CRAD_INLINE Word narrowed(float16, Float wide) {
  const Word bits = bit_cast<Word>(wide), magnitude = bits & 0x7FFFFFFF;
  const Word normal = (magnitude - 0x38000000 + 0xFFF + ((bits >> 13) & 1)) >> 13;
  // Adding 1/2 rounds a value below 2^-14 to a multiple of 2^-24, a subnormal half.
  const Word subnormal = bit_cast<Word>(bit_cast<Float>(magnitude) + 0.5f) - 0x3F000000;
  Word half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477FF000 ? Word{} + 0x7C00 : half;
  half = magnitude > 0x7F800000 ? Word{} + 0x7E00 : half;
  return half | ((bits >> 16) & 0x8000);
}

// A number as sums are taken of it, and rounded to how it is stored.
CRAD_INLINE float widened(float number) { return number; }
CRAD_INLINE double widened(double number) { return number; }
CRAD_INLINE void narrow(float wide, float& number) { number = wide; }
CRAD_INLINE void narrow(double wide, double& number) { number = wide; }
CRAD_INLINE void narrow(float wide, double& number) { number = wide; }
CRAD_INLINE void narrow(double wide, float& number) { number = static_cast<float>(wide); }
#if defined(__CUDA_ARCH__)
CRAD_INLINE float widened(bfloat16 number) {
  return __bfloat162float(__ushort_as_bfloat16(number.bits));
}
CRAD_INLINE float widened(float16 number) { return __half2float(__ushort_as_half(number.bits)); }
CRAD_INLINE void narrow(float wide, bfloat16& number) {
  number.bits = __bfloat16_as_ushort(__float2bfloat16_rn(wide));
}
CRAD_INLINE void narrow(float wide, float16& number) {
  number.bits = __half_as_ushort(__float2half_rn(wide));
}
#else
CRAD_INLINE float widened(bfloat16 number) { return widened<float>(number, uint32_t{number.bits}); }
CRAD_INLINE float widened(float16 number) { return widened<float>(number, uint32_t{number.bits}); }
CRAD_INLINE void narrow(float wide, bfloat16& number) {
  number.bits = static_cast<uint16_t>(narrowed<uint32_t>(number, wide));
}
CRAD_INLINE void narrow(float wide, float16& number) {
  number.bits = static_cast<uint16_t>(narrowed<uint32_t>(number, wide));
}
#endif

}  // namespace
}  // namespace crad
