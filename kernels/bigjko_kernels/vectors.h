// L doubles a register: what fused.cpp, ridge.cpp and passes.cpp share.
#pragma once
#include <cstdint>
#include <type_traits>
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

// 2 L floats, and to and from two registers of doubles.
typedef float VF __attribute__((vector_size(8 * L), aligned(4), may_alias));
typedef int32_t MF __attribute__((vector_size(8 * L)));
#if defined(__AVX512DQ__)
inline VF narrow(V a, V b) {
    return (VF)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a)), _mm512_cvtpd_ps((__m512d)b), 1);
}
inline V low_half(VF a) { return (V)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)a)); }
inline V high_half(VF a) { return (V)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)a, 1)); }
inline VF larger(VF a, VF b) { return (VF)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline VF narrow(V a, V b) {
    const __m128 low = _mm256_cvtpd_ps((__m256d)a), high = _mm256_cvtpd_ps((__m256d)b);
    return (VF)_mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
inline V low_half(VF a) { return (V)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a)); }
inline V high_half(VF a) { return (V)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1)); }
inline VF larger(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline VF narrow(V a, V b) {
    VF x;
    for (int l = 0; l < L; ++l) x[l] = float(a[l]), x[l + L] = float(b[l]);
    return x;
}
inline V low_half(VF a) {
    V x;
    for (int l = 0; l < L; ++l) x[l] = a[l];
    return x;
}
inline V high_half(VF a) {
    V x;
    for (int l = 0; l < L; ++l) x[l] = a[l + L];
    return x;
}
inline VF larger(VF a, VF b) { return a > b ? a : b; }
#endif

inline V all(double x) { return V{} + x; }
// larger, smaller: b where either is NaN.
#if defined(__AVX512DQ__)
inline V larger(V a, V b) { return (V)_mm512_max_pd((__m512d)a, (__m512d)b); }
inline V smaller(V a, V b) { return (V)_mm512_min_pd((__m512d)a, (__m512d)b); }
inline unsigned reaches(V a, V b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ); }
#elif defined(__AVX2__)
inline V larger(V a, V b) { return (V)_mm256_max_pd((__m256d)a, (__m256d)b); }
inline V smaller(V a, V b) { return (V)_mm256_min_pd((__m256d)a, (__m256d)b); }
inline unsigned reaches(V a, V b) { return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GE_OQ)); }
#else
inline V larger(V a, V b) { return a > b ? a : b; }
inline V smaller(V a, V b) { return a < b ? a : b; }
inline unsigned reaches(V a, V b) { return (a[0] >= b[0]) | (a[1] >= b[1]) << 1; }
#endif

// What a grid's dtype asks for. margin: exp(-margin) may be left out, which is below the rounding of the result.
// exp: minimax on |r| <= log(2)/2, highest power first. log: that of (2 atanh(f)/f - 2)/f^2 in f^2, 1/2 <= x^2 <= 2.
struct Double {  // 2e-16 and 1e-17
    static constexpr double margin = 37;
    static constexpr double exp[] = {
        2.76263710656963561e-7, 2.76401973916948405e-6, 2.48015043137855402e-5, 1.98411702305702867e-4,
        1.38888889325147794e-3, 8.33333338569921173e-3, 4.16666666665730777e-2, 1.66666666665543146e-1,
        5.00000000000000562e-1, 1.00000000000000675,    1.0};
    static constexpr double log[] = {1.46164496850434059e-1, 1.53317216005560413e-1, 1.81828891252617221e-1,
                                     2.22222111347950799e-1, 2.85714286259754849e-1, 3.99999999998995045e-1,
                                     6.66666666666666969e-1};
};
struct Single {  // 2e-9 and 1e-9
    static constexpr double margin = 20;
    static constexpr double exp[] = {1.39411188958370008e-3, 8.37513477462432517e-3, 4.16663527711222113e-2,
                                     1.66664154140411784e-1, 5.00000004714605742e-1, 1.00000003773887126, 1.0};
    static constexpr double log[] = {2.95799493919727847e-1, 3.99887805660219819e-1, 6.66666850395758550e-1};
};

template <int N, class X>
inline X polynomial(const double (&c)[N], X x) {
    using R = std::decay_t<decltype(x[0])>;
    X p = X{} + R(c[0]);
#pragma GCC unroll 16
    for (int i = 1; i < N; ++i) p = p * x + R(c[i]);
    return p;
}

template <class P>
inline V exp_of(V a) {  // of a <= 0; what is below exp(-708) becomes that
    const V x = larger(a, all(-708)), y = x * 0x1.71547652b82fep0 + 0x1.8p52, n = y - 0x1.8p52;
    return (V)((M)polynomial(P::exp, x - n * 0x1.62e42fefa39efp-1) + ((M)y << 52));
}

template <class P>
inline V log_of(V x) {  // of a normal x > 0, as n log(2) + log(m)
    const U e = ((U)x - 0x3fe6a09e667f3bcd + (1024ull << 52)) >> 52;  // n + 1024, from the bits of sqrt(1/2)
    const V n = (V)(e | 0x4330000000000000) - (0x1p52 + 1024), m = (V)((U)x - ((e - 1024) << 52));
    const V f = (m - 1.0) / (m + 1.0), z = f * f;
    return n * 0x1.62e42fefa39efp-1 + (f * 2.0 + f * z * polynomial(P::log, z));
}

inline VF exp_of(VF a) {  // of a <= 0, to an ulp; what is below exp(-87) becomes that
    const VF x = larger(a, VF{} - 87.0f), y = x * 0x1.715476p0f + 0x1.8p23f, n = y - 0x1.8p23f;
    const VF r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    return (VF)((MF)polynomial(Single::exp, r) + ((MF)y << 23));
}

}  // namespace
