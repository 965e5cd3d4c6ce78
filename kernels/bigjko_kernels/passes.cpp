// What a step does to arrays of N between applications of the kernel, each in one pass. Sums are double whatever the
// dtype, and belong to shares of the nodes that do not depend on threads, which do not change a bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr long SHARE = 1 << 14;  // nodes

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

inline V first(V x, long left) {  // -inf beyond
    if (left >= L) return x;
    for (int l = 0; l < L; ++l) x[l] = l < left ? x[l] : -INFINITY;
    return x;
}

inline double sum(V x) {
    double total = 0;
    for (int l = 0; l < L; ++l) total += x[l];
    return total;
}
inline bool any(M x) {
    int64_t bits = 0;
    for (int l = 0; l < L; ++l) bits |= x[l];
    return bits;
}
inline V root(V x) {
    for (int l = 0; l < L; ++l) x[l] = std::sqrt(x[l]);
    return x;
}

template <class P>
inline V masses_of(V a) {  // exp(a) of any number, 0 and NaN included
    V p = exp_of<P>(a);
    p -= p * (a * 3.3457e-17);  // what exp_of lost to the rounding of log(2)
    p = (V)((M)p & (M)(a >= -708));
    if (reaches(all(709), a) + reaches(a, all(-708)) + reaches(all(-746), a) != 2 * ((1u << L) - 1))
        for (int l = 0; l < L; ++l) p[l] = a[l] <= 709 && a[l] >= -708 ? p[l] : std::exp(a[l]);
    return p;
}

// Calls each(share, from, to) for shares of `count` things of `size` nodes each.
long shares(long count, long size) { return (count + std::max(1L, SHARE / size) - 1) / std::max(1L, SHARE / size); }
template <class F>
void shared(long count, long size, long threads, F each) {
    const long some = std::max(1L, SHARE / size), all = shares(count, size);
    std::atomic<long> next{0};
    auto work = [&] {
        for (long s; (s = next++) < all;) each(s, s * some, std::min(count, (s + 1) * some));
    };
    on_threads(std::min(threads, all), work);
}

// ------------------------------------------------------------------------------------------------------------ networks

// Nodes (outer, directions, inner), on which the network's amplitude is constant along the directions.
struct Network {
    long outer, directions, inner;
    const double* amplitude;  // (outer, inner)
};

// For some directions, each(place, length, s, v, d): runs of nodes where amplitude x height is s v_i, i counted along
// the run; d is the direction at which it begins. Along the inner nodes, or across the directions if there is one each.
template <class A, class F>
inline void runs(const Network& net, const A* heights, long from, long to, F each) {
    const long W = net.directions, I = net.inner;
    if (I == 1)
        for (long o = 0; o < net.outer; ++o) each(o * W + from, to - from, net.amplitude[o], heights + from, from);
    else
        for (long d = from; d < to; ++d)
            for (long o = 0; o < net.outer; ++o) each((o * W + d) * I, I, double(heights[d]), net.amplitude + o * I, d);
}

// out = scale base + alpha (V + amplitude x heights); no V: zero.
template <class A>
void blend(const A* base, double scale, const A* potential, const A* heights, double alpha, A* out, const Network& net,
           long threads) {
    shared(net.directions, net.outer * net.inner, threads, [&](long, long from, long to) {
        runs(net, heights, from, to, [&](long place, long length, double s, auto v, long) {
            const A *b = base + place, *p = potential + place;
            A* o = out + place;
            for (long i = 0; i < length; i += L) {
                V x = alpha * s * load(v + i, length - i) + scale * load(b + i, length - i);
                if (potential) x += alpha * load(p + i, length - i);
                store(o + i, x, length - i);
            }
        });
    });
}

// log_p += rest, and the sum over each direction's nodes of amplitude exp(log_p); NaN where that is no number.
template <class P, class A>
void weigh(A* log_p, const A* rest, double* weights, const Network& net, long threads) {
    const std::vector<double> ones(net.inner == 1 ? net.directions : 0, 1.0);  // in place of heights, which no sum has
    shared(net.directions, net.outer * net.inner, threads, [&](long, long from, long to) {
        M wrong{};
        auto moved = [&](long at, long left) {
            V x = load(log_p + at, left, -1000) + load(rest + at, left);
            store(log_p + at, x, left);
            if (sizeof(A) < sizeof(double)) x = load(log_p + at, left, -1000);  // rounded as what is kept
            wrong |= (M)(x != x) | (M)(x > 709);
            return exp_of<P>(x);
        };
        std::fill(weights + from, weights + to, 0.0);
        if (net.inner == 1)
            for (long o = 0; o < net.outer; ++o)
                for (long d = from; d < to; d += L) {
                    const V w = load(weights + d, to - d) + net.amplitude[o] * moved(o * net.directions + d, to - d);
                    store(weights + d, w, to - d);
                }
        else
            for (long d = from; d < to; ++d) {
                V w{};
                for (long o = 0; o < net.outer; ++o)
                    for (long i = 0; i < net.inner; i += L)
                        w += load(net.amplitude + o * net.inner + i, net.inner - i) *
                             moved((o * net.directions + d) * net.inner + i, net.inner - i);
                weights[d] = sum(w);
            }
        if (any(wrong)) std::fill(weights + from, weights + to, NAN);
    });
}

// -------------------------------------------------------------------------------------------------------------- plain

// p = exp(log_p).
template <class P, class A>
void masses(const A* log_p, A* p, long n, long threads) {
    shared(n, 1, threads, [&](long, long from, long to) {
        for (long i = from; i < to; i += L) store(p + i, masses_of<P>(load(log_p + i, to - i)), to - i);
    });
}

// log_k = log_q - log_k; returns the sum of q log_k as it was.
template <class A>
double divide(const A* q, const A* log_q, A* log_k, long n, long threads) {
    std::vector<double> found(shares(n, 1));
    shared(n, 1, threads, [&](long s, long from, long to) {
        V total{};
        for (long i = from; i < to; i += L) {
            const V k = load(log_k + i, to - i);
            total += load(q + i, to - i) * k;
            store(log_k + i, load(log_q + i, to - i) - k, to - i);
        }
        found[s] = sum(total);
    });
    double total = 0;
    for (double f : found) total += f;
    return total;
}

// The sum of (sqrt(p_k+1) - sqrt(p_k))^2 along the middle axis of (before, n, after), as p + p' - 2 sqrt(p p').
template <class A>
double rises(const A* p, long before, long n, long after, long threads) {
    const long all = before * n * after, line = n * after;
    std::vector<double> found(shares(all, 1));
    shared(all, 1, threads, [&](long s, long from, long to) {
        V total{};
        while (from < to) {
            const long end = std::min(to, from / line * line + line - after);  // the last nodes have none above them
            for (; from < end; from += L) {
                const long left = end - from;
                const V a = load(p + from, left), b = load(p + from + after, left);
                total += a + b - 2.0 * root(a * b);
            }
            from = end < to ? (end + after) / line * line : to;
        }
        found[s] = sum(total);
    });
    double total = 0;
    for (double f : found) total += f;
    return total;
}

// The sums of every row and of every column of (rows, length).
template <class A>
void profiles(const A* p, long rows, long length, double* by_row, double* by_column, long threads) {
    const long blocks = std::min(64L, shares(rows, length));
    std::vector<double> found(blocks * length);
    shared(blocks, SHARE, threads, [&](long, long from, long to) {
        for (long b = from; b < to; ++b) {
            double* columns = &found[b * length];
            for (long r = rows * b / blocks; r < rows * (b + 1) / blocks; ++r) {
                V total{};
                for (long i = 0; i < length; i += L) {
                    const V x = load(p + r * length + i, length - i);
                    total += x;
                    store(columns + i, load(columns + i, length - i) + x, length - i);
                }
                by_row[r] = sum(total);
            }
        }
    });
    std::fill(by_column, by_column + length, 0.0);
    for (long b = 0; b < blocks; ++b)
        for (long i = 0; i < length; ++i) by_column[i] += found[b * length + i];
}

// ---------------------------------------------------------------------------------------------------------------- fits

// How a debiasing potential d fits a measure p, r = k exp(weight d) being what it reproduces, and d moved towards it:
//
//     new_i = max(d_i + rate log(p_i/r_i), least + eps log k_i),   p_i in place of log k_i,
//     the sums of p, r and |p - r|,   the largest log(p_i/r_i), the largest and the smallest new_i
struct Rule {
    double weight, rate, eps, least;
};

struct Fit {
    double mass = 0, reproduced = 0, missed = 0, worst = -INFINITY, top = -INFINITY, low = INFINITY, undefined = 0;
};

template <class P, class A>
Fit fit(const A* log_p, A* log_k, const A* d, A* out, long n, const Rule& by, long threads) {
    std::vector<Fit> found(shares(n, 1));
    shared(n, 1, threads, [&](long s, long from, long to) {
        V mass{}, reproduced{}, missed{}, worst = all(-INFINITY), top = worst, low = worst;
        M undefined{};
        for (long i = from; i < to; i += L) {
            const long left = to - i;
            const V a = load(log_p + i, left, -INFINITY), k = load(log_k + i, left, -1000), old = load(d + i, left);
            const V b = k + by.weight * old, ratio = a - b;
            const V moved = larger(by.least + by.eps * k, old + by.rate * ratio);  // NaN where that is
            const V p = masses_of<P>(a), r = exp_of<P>(b), miss = p - r;
            store(out + i, moved, left), store(log_k + i, p, left);
            undefined |= (M)(moved != moved) | (M)(larger(a, b) > 709);  // NaN, or no number in double
            worst = larger(ratio, worst);
            top = larger(first(moved, left), top), low = larger(first(-moved, left), low);
            mass += p, reproduced += r, missed += larger(miss, -miss);
        }
        Fit& f = found[s];
        f.mass = sum(mass), f.reproduced = sum(reproduced), f.missed = sum(missed), f.undefined = any(undefined);
        for (int l = 0; l < L; ++l) {
            f.worst = std::max(f.worst, worst[l]), f.top = std::max(f.top, top[l]);
            f.low = std::min(f.low, -low[l]);
        }
    });
    Fit total;
    for (const Fit& f : found) {
        total.mass += f.mass, total.reproduced += f.reproduced, total.missed += f.missed;
        total.worst = std::max(total.worst, f.worst), total.top = std::max(total.top, f.top);
        total.low = std::min(total.low, f.low), total.undefined += f.undefined;
    }
    return total;
}

template <class F>
auto in_dtype(long single, F f) {
    return single ? f(Single(), float()) : f(Double(), double());
}

}  // namespace

extern "C" void bigjko_blend(const void* base, double scale, const void* potential, const void* heights, double alpha,
                             void* out, const Network* net, long single, long threads) {
    in_dtype(single, [&](auto, auto a) {
        using A = decltype(a);
        blend((const A*)base, scale, (const A*)potential, (const A*)heights, alpha, (A*)out, *net, threads);
    });
}

extern "C" void bigjko_weigh(void* log_p, const void* rest, double* weights, const Network* net, long single,
                             long threads) {
    in_dtype(single, [&](auto precision, auto a) {
        using A = decltype(a);
        weigh<decltype(precision)>((A*)log_p, (const A*)rest, weights, *net, threads);
    });
}

extern "C" void bigjko_masses(const void* log_p, void* p, long n, long single, long threads) {
    in_dtype(single, [&](auto precision, auto a) {
        using A = decltype(a);
        masses<decltype(precision)>((const A*)log_p, (A*)p, n, threads);
    });
}

extern "C" double bigjko_divide(const void* q, const void* log_q, void* log_k, long n, long single, long threads) {
    return in_dtype(single, [&](auto, auto a) {
        using A = decltype(a);
        return divide((const A*)q, (const A*)log_q, (A*)log_k, n, threads);
    });
}

extern "C" double bigjko_rises(const void* p, long before, long n, long after, long single, long threads) {
    return in_dtype(single, [&](auto, auto a) {
        using A = decltype(a);
        return rises((const A*)p, before, n, after, threads);
    });
}

extern "C" void bigjko_profiles(const void* p, long rows, long length, double* by_row, double* by_column, long single,
                                long threads) {
    in_dtype(single, [&](auto, auto a) {
        profiles((const decltype(a)*)p, rows, length, by_row, by_column, threads);
    });
}

extern "C" void bigjko_fit(const void* log_p, void* log_k, const void* d, void* out, long n, long single,
                           const double* by, long threads, double* result) {
    const Rule rule{by[0], by[1], by[2], by[3]};
    const Fit f = in_dtype(single, [&](auto precision, auto a) {
        using A = decltype(a);
        return fit<decltype(precision)>((const A*)log_p, (A*)log_k, (const A*)d, (A*)out, n, rule, threads);
    });
    const double values[] = {f.mass, f.reproduced, f.missed, f.worst, f.top, f.low};
    for (int k = 0; k < 6; ++k) result[k] = f.undefined ? NAN : values[k];
}
