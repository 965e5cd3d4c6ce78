// Passes over arrays of double or float, a register of doubles at a time: what passes.cpp and ridge.cpp share.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "vectors.h"

namespace {

typedef float F __attribute__((vector_size(4 * L), aligned(4), may_alias));
inline V load(const double* p) { return *(const V*)p; }
#if defined(__AVX512DQ__)  // which GCC 12 converts by halves
inline V load(const float* p) { return (V)_mm512_cvtps_pd(_mm256_loadu_ps(p)); }
#elif defined(__AVX2__)
inline V load(const float* p) { return (V)_mm256_cvtps_pd(_mm_loadu_ps(p)); }
#else
inline V load(const float* p) { return __builtin_convertvector(*(const F*)p, V); }
#endif
inline void store(double* p, V x) { *(V*)p = x; }
inline void store(float* p, V x) { *(F*)p = __builtin_convertvector(x, F); }

// The same where only `left` entries are there; the rest of a register is `beyond`.
template <class A>
inline V load(const A* p, long left, double beyond = 0) {
    if (left >= L) return load(p);
    A part[L];
    for (int l = 0; l < L; ++l) part[l] = l < left ? p[l] : A(beyond);
    return load(part);
}
template <class A>
inline void store(A* p, V x, long left) {
    if (left >= L) return store(p, x);
    for (int l = 0; l < left; ++l) p[l] = A(x[l]);
}

inline double sum(V x) {
    for (int h = L / 2; h; h /= 2)
        for (int l = 0; l < h; ++l) x[l] += x[l + h];
    return x[0];
}
inline double top(V x) {
    double most = x[0];
    for (int l = 1; l < L; ++l) most = std::max(most, x[l]);
    return most;
}
inline bool any(M x) {
    int64_t bits = 0;
    for (int l = 0; l < L; ++l) bits |= x[l];
    return bits;
}
inline M undefined(V a) { return (M)(a != a); }
inline V root(V x) {
    for (int l = 0; l < L; ++l) x[l] = std::sqrt(x[l]);
    return x;
}
inline V first(V x, long left) {  // -inf beyond
    for (int l = 0; l < L; ++l) x[l] = l < left ? x[l] : -INFINITY;
    return x;
}

// Calls some(i, left) for every register of n nodes; left is a constant but for the last. What a call of `some` works on
// should be in locals, so that it stays in registers: an address that others know is read again after every store.
template <class F>
inline void registers(long n, F some) {
    long i = 0;
    for (; i + L <= n; i += L) some(i, std::integral_constant<long, L>());
    if (i < n) some(i, n - i);
}

template <class F>
auto in_dtype(long single, F f) {
    return single ? f(Single(), float()) : f(Double(), double());
}

}  // namespace
