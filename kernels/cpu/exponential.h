// exp of vectors, for numbers that are at most 0, as softmax has them.
//
// exp(x) = 2^n exp(r) with n = round(x / ln 2) and r = x - n ln 2, |r| <= ln(2) / 2; exp(r) by a polynomial of degree
// 6 (relative error below 1e-7 with its roundings). What is below the smallest normal number is 0, as -inf gives; NaN
// stays.
#pragma once

#include <cmath>

#include "vectors.h"

namespace ulsam {

ULSAM_INLINE Vec<float> exponential(Vec<float> x) {
  const float round = 12582912.0f;  // 1.5 2^23: added and subtracted it rounds to an integer, which its low bits hold
  const Vec<float> shifted = x * 1.44269504088896341f + round;
  const Vec<float> n = shifted - round;
  Vec<float> r = x - n * 0.693359375f;  // ln 2 in two parts, the first of few bits
  r = r - n * -2.12194440e-4f;
  Vec<float> p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Bits32 exponent = ((Bits32)shifted - 0x4b400000u + 127u) << 23;
  return unless<float>(x < -87.3f, p * (Vec<float>)exponent);
}

ULSAM_INLINE Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace ulsam
