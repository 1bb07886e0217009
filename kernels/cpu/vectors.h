// Vectors of the machine's own width, and the four types that tensors have here.
//
// F is the type of computation, float or double; T is a type in memory: F, or bfloat16 or float16, which become float
// when they are loaded. `Vec<F>` holds LANES<F> numbers. Arithmetic and comparisons are the compiler's; a comparison
// gives a mask of all ones or zeros. What the compiler expresses badly is written by hand below: maximum, halves.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define ULSAM_AVX512 1
#define ULSAM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ULSAM_VECTOR_BYTES 32
#else
#define ULSAM_VECTOR_BYTES 16
#endif

#define ULSAM_INLINE inline __attribute__((always_inline))
#define ULSAM_APART __attribute__((noinline))  // once per type, whoever calls it: a third of the time to compile

namespace ulsam {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class F>
struct Types;
template <>
struct Types<float> {
  typedef float vec __attribute__((vector_size(ULSAM_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(ULSAM_VECTOR_BYTES)));
};
template <>
struct Types<double> {
  typedef double vec __attribute__((vector_size(ULSAM_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(ULSAM_VECTOR_BYTES)));
};

template <class F>
using Vec = typename Types<F>::vec;
template <class F>
using Mask = typename Types<F>::mask;
template <class F>
constexpr int LANES = ULSAM_VECTOR_BYTES / sizeof(F);

template <class F>
constexpr F INF = std::numeric_limits<F>::infinity();
template <class F>
constexpr F NOT_A_NUMBER = std::numeric_limits<F>::quiet_NaN();

// f(0), ..., f(N - 1) with constants: arrays that they index stay in registers.
template <class Function, int... I>
ULSAM_INLINE void unrolled(const Function& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class Function>
ULSAM_INLINE void unrolled(const Function& f) {
  unrolled(f, std::make_integer_sequence<int, N>());
}

// --- one number ---------------------------------------------------------------------------------------------------

ULSAM_INLINE float get(const float* p) { return *p; }
ULSAM_INLINE double get(const double* p) { return *p; }
ULSAM_INLINE float get(const bfloat16* p) {
  const uint32_t bits = uint32_t(p->bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
ULSAM_INLINE float get(const float16* p) { return torch::headeronly::detail::fp16_ieee_to_fp32_value(p->bits); }

ULSAM_INLINE void put(float* p, float f) { *p = f; }
ULSAM_INLINE void put(double* p, double f) { *p = f; }
ULSAM_INLINE void put(bfloat16* p, float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  p->bits = f != f ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}
ULSAM_INLINE void put(float16* p, float f) { p->bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(f); }

// --- vectors in memory --------------------------------------------------------------------------------------------

template <class F>
ULSAM_INLINE Vec<F> broadcast(F f) {
  return f - Vec<F>{};  // -0 stays -0, and the compiler knows that nothing is to be done
}

template <class F>
ULSAM_INLINE Vec<F> load(const F* p) {
  Vec<F> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class F, bool NAN_TOO = true>
ULSAM_INLINE void store(F* p, Vec<F> v) {
  std::memcpy(p, &v, sizeof v);
}

typedef uint16_t Bits16 __attribute__((vector_size(ULSAM_VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(ULSAM_VECTOR_BYTES)));

template <class F>
ULSAM_INLINE Vec<F> load(const bfloat16* p) {
  Bits16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Vec<F>)(__builtin_convertvector(bits, Bits32) << 16);
}

// To nearest, ties to even; NAN_TOO: without it a NaN may become infinity or 0.
template <class F, bool NAN_TOO = true>
ULSAM_INLINE void store(bfloat16* p, Vec<F> v) {
  const Bits32 bits = (Bits32)v;
  Bits32 half = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  if constexpr (NAN_TOO) {
    const Bits32 nan = (Bits32)(v != v);
    half = (half & ~nan) | (nan & 0x7fc0);
  }
#if defined(__AVX2__) && !defined(ULSAM_AVX512)
  const __m256i h = (__m256i)half;
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
#else
  const Bits16 narrow = __builtin_convertvector(half, Bits16);
  std::memcpy(p, &narrow, sizeof narrow);
#endif
}

template <class F>
ULSAM_INLINE Vec<F> load(const float16* p) {
#if defined(ULSAM_AVX512)
  return (Vec<F>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
  return (Vec<F>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<F> v;
  for (int i = 0; i < LANES<F>; ++i) v[i] = get(p + i);
  return v;
#endif
}

template <class F, bool NAN_TOO = true>
ULSAM_INLINE void store(float16* p, Vec<F> v) {
#if defined(ULSAM_AVX512)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < LANES<F>; ++i) put(p + i, v[i]);
#endif
}

#if defined(__AVX2__) && !defined(ULSAM_AVX512)
inline const int32_t FIRST_LANES[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
#endif

// The first `count` lanes; no memory behind them is touched.
template <class F, class T>
ULSAM_INLINE void store_some(T* p, Vec<F> v, int count) {
  if (count == LANES<F>) return store<F>(p, v);
  if constexpr (std::is_same<T, float>::value) {
#if defined(ULSAM_AVX512)
    return _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
#elif defined(__AVX2__)
    return _mm256_maskstore_ps(p, _mm256_loadu_si256((const __m256i*)(FIRST_LANES + 8 - count)), (__m256)v);
#endif
  }
  T some[LANES<F>];
  store<F>(some, v);
#if defined(ULSAM_AVX512)
  if constexpr (sizeof(T) == 2)
    return _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), _mm256_loadu_si256((const __m256i*)some));
#endif
  for (int i = 0; i < count; ++i) p[i] = some[i];
}

// The first `count` lanes of memory, 0 behind them.
template <class F, class T>
ULSAM_INLINE Vec<F> load_some(const T* p, int count) {
  if (count == LANES<F>) return load<F>(p);
  if constexpr (std::is_same<T, float>::value) {
#if defined(ULSAM_AVX512)
    return (Vec<F>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
#elif defined(__AVX2__)
    return (Vec<F>)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i*)(FIRST_LANES + 8 - count)));
#endif
  }
  T some[LANES<F>] = {};
#if defined(ULSAM_AVX512)
  if constexpr (sizeof(T) == 2) {
    _mm256_storeu_si256((__m256i*)some, _mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), p));
    return load<F>(some);
  }
#endif
  for (int i = 0; i < count; ++i) some[i] = p[i];
  return load<F>(some);
}

// --- choices ------------------------------------------------------------------------------------------------------

// The larger of a and b, and b where either is NaN, as x86's instruction has it.
ULSAM_INLINE Vec<float> maximum(Vec<float> a, Vec<float> b) {
#if defined(ULSAM_AVX512)
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
ULSAM_INLINE Vec<double> maximum(Vec<double> a, Vec<double> b) {
#if defined(ULSAM_AVX512)
  return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}
ULSAM_INLINE Vec<float> minimum(Vec<float> a, Vec<float> b) {
#if defined(ULSAM_AVX512)
  return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}
ULSAM_INLINE Vec<double> minimum(Vec<double> a, Vec<double> b) {
#if defined(ULSAM_AVX512)
  return (Vec<double>)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_min_pd((__m128d)a, (__m128d)b);
#else
  return a < b ? a : b;
#endif
}

template <class F>
ULSAM_INLINE Vec<F> relu(Vec<F> u) {
  return maximum(Vec<F>{}, u);  // in this order NaN stays
}

// v where the mask is 0, else 0.
template <class F>
ULSAM_INLINE Vec<F> unless(Mask<F> mask, Vec<F> v) {
  return (Vec<F>)(~mask & (Mask<F>)v);
}

// The first `count` lanes of v, those of other behind them.
template <class F>
ULSAM_INLINE Vec<F> first_lanes(Vec<F> v, int count, Vec<F> other) {
  Mask<F> lane;
  for (int i = 0; i < LANES<F>; ++i) lane[i] = i;
  return lane < count ? v : other;
}

// The sum of all lanes in the fixed order of halves: (0 + n/2), ...
template <class F>
ULSAM_INLINE F sum_lanes(Vec<F> v) {
#if defined(__AVX2__)
  if constexpr (std::is_same<F, float>::value) {
#if defined(ULSAM_AVX512)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    const __m256 half = (__m256)v;
#endif
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
#endif
  F a[LANES<F>];
  store(a, v);
  for (int n = LANES<F> / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  return a[0];
}

template <class F>
ULSAM_INLINE F max_lanes(Vec<F> v) {
  F a[LANES<F>];
  store(a, v);
  for (int n = LANES<F> / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) a[i] = a[i + n] > a[i] ? a[i + n] : a[i];
  return a[0];
}

}  // namespace ulsam
