// L doubles a register: what fused.cpp and ridge.cpp share.
#pragma once
#include <cstdint>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512DQ__)
constexpr int L = 8;
#elif defined(__AVX2__)
constexpr int L = 4;
#else
constexpr int L = 2;
#endif

typedef double V __attribute__((vector_size(8 * L), aligned(8), may_alias));
typedef int64_t M __attribute__((vector_size(8 * L)));
typedef uint64_t U __attribute__((vector_size(8 * L)));

inline V all(double x) { return V{} + x; }
// larger: b where either is NaN.
#if defined(__AVX512DQ__)
inline V larger(V a, V b) { return (V)_mm512_max_pd((__m512d)a, (__m512d)b); }
inline unsigned reaches(V a, V b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ); }
#elif defined(__AVX2__)
inline V larger(V a, V b) { return (V)_mm256_max_pd((__m256d)a, (__m256d)b); }
inline unsigned reaches(V a, V b) { return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GE_OQ)); }
#else
inline V larger(V a, V b) { return a > b ? a : b; }
inline unsigned reaches(V a, V b) { return (a[0] >= b[0]) | (a[1] >= b[1]) << 1; }
#endif

}  // namespace
