// What a step does to arrays of N between applications of the kernel, each in one pass. Sums are double whatever the
// dtype, and belong to shares of the nodes that do not depend on threads, which do not change a bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
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

inline double sum(V x) {
    double total = 0;
    for (int l = 0; l < L; ++l) total += x[l];
    return total;
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

// exp(a), but for what `odd` says.
template <class P>
inline V masses_of(V a) {
    V p = exp_of<P>(a);
    p -= p * (a * 3.3457e-17);  // what exp_of lost to the rounding of log(2)
    return (V)((M)p & (M)(a >= -708));
}
inline M odd(V a) { return (M)(a > -746) & ~((M)(a >= -708) & (M)(a <= 709)); }  // no normal number
inline M undefined(V a) { return (M)(a != a); }
template <class A>
void mend(const A* log_p, A* p, long n) {
    for (long i = 0; i < n; ++i)
        if (!(log_p[i] >= -708 && log_p[i] <= 709)) p[i] = A(std::exp(double(log_p[i])));
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
template <class F>  // of nodes, whose shares each give a number
double total(long n, long threads, F each) {
    std::vector<double> found(shares(n, 1));
    shared(n, 1, threads, [&](long s, long from, long to) { found[s] = each(from, to - from); });
    double sum = 0;
    for (double f : found) sum += f;
    return sum;
}

// ------------------------------------------------------------------------------------------------------------ networks

// Nodes (outer, directions, inner), on which the network's amplitude is constant along the directions.
struct Network {
    long outer, directions, inner;
    const double* amplitude;  // (outer, inner)
};

// out = scale base + s v; no V: else + alpha V.
template <class A, class B>
void blend(const A* base, double scale, const A* potential, double alpha, const B* v, double s, A* out, long n) {
    if (potential)
        registers(n, [&](long i, auto left) {
            const V x = s * load(v + i, left) + scale * load(base + i, left);
            store(out + i, x + alpha * load(potential + i, left), left);
        });
    else
        registers(n, [&](long i, auto left) {
            store(out + i, s * load(v + i, left) + scale * load(base + i, left), left);
        });
}

// out = scale base + alpha (V + amplitude x heights); no V: zero. In runs of nodes where amplitude x height is s v_i:
// along the inner nodes, or across the directions if there is one each.
template <class A>
void blend(const A* base, double scale, const A* potential, const A* heights, double alpha, A* out, const Network& net,
           long threads) {
    const long W = net.directions, I = net.inner;
    auto run = [&](long at, long n, auto* v, double s) {
        blend(base + at, scale, potential ? potential + at : nullptr, alpha, v, alpha * s, out + at, n);
    };
    shared(W, net.outer * I, threads, [&](long, long from, long to) {
        for (long o = 0; o < net.outer; ++o)
            if (I == 1) run(o * W + from, to - from, heights + from, net.amplitude[o]);
            else
                for (long d = from; d < to; ++d) run((o * W + d) * I, I, net.amplitude + o * I, heights[d]);
    });
}

// log_p += rest; each(i, left, exp(log_p)). Whether an exponential is no number.
template <class P, class A, class F>
inline bool moved(A* log_p, const A* rest, long n, F each) {
    M wrong{};
    registers(n, [&](long i, auto left) {
        V x = load(log_p + i, left, -1000) + load(rest + i, left);
        store(log_p + i, x, left);
        if (sizeof(A) < sizeof(double)) x = load(log_p + i, left, -1000);  // rounded as what is kept
        wrong |= undefined(x) | (M)(x > 709);
        each(i, left, exp_of<P>(x));
    });
    return any(wrong);
}

// log_p += rest, and the sum over each direction's nodes of amplitude exp(log_p); NaN where that is no number.
template <class P, class A>
void weigh(A* log_p, const A* rest, double* weights, const Network& net, long threads) {
    const long W = net.directions, I = net.inner;
    shared(W, net.outer * I, threads, [&](long, long from, long to) {
        std::fill(weights + from, weights + to, 0.0);
        bool wrong = false;
        for (long o = 0; o < net.outer; ++o) {
            const double* amplitude = net.amplitude + o * I;
            if (I == 1)
                wrong |= moved<P>(log_p + o * W + from, rest + o * W + from, to - from,
                                  [a = amplitude[0], w = weights + from](long i, auto left, V p) {
                                      store(w + i, load(w + i, left) + a * p, left);
                                  });
            else
                for (long d = from; d < to; ++d) {
                    V w{};
                    wrong |= moved<P>(log_p + (o * W + d) * I, rest + (o * W + d) * I, I,
                                      [&w, amplitude](long i, auto left, V p) { w += load(amplitude + i, left) * p; });
                    weights[d] += sum(w);
                }
        }
        if (wrong) std::fill(weights + from, weights + to, NAN);
    });
}

// -------------------------------------------------------------------------------------------------------------- plain

// p = exp(log_p).
template <class P, class A>
void masses(const A* log_p, A* p, long n) {
    M wrong{};
    registers(n, [&](long i, auto left) {
        const V a = load(log_p + i, left);
        store(p + i, masses_of<P>(a), left);
        wrong |= odd(a) | undefined(a);
    });
    if (any(wrong)) mend(log_p, p, n);
}

// log_k = log_q - log_k; returns the sum of q log_k as it was.
template <class A>
double divide(const A* q, const A* log_q, A* log_k, long n) {
    V total{};
    registers(n, [&](long i, auto left) {
        const V k = load(log_k + i, left);
        total += load(q + i, left) * k;
        store(log_k + i, load(log_q + i, left) - k, left);
    });
    return sum(total);
}

// The sum of (sqrt(p') - sqrt(p))^2, p' being `next` nodes further, as p + p' - 2 sqrt(p p').
template <class A>
double rises(const A* p, long next, long n) {
    V total{};
    registers(n, [&](long i, auto left) {
        const V a = load(p + i, left), b = load(p + i + next, left);
        total += a + b - 2.0 * root(a * b);
    });
    return sum(total);
}

// Adds rows to `columns`, and writes their own sums.
template <int ROWS, class A>
void profiles(const A* p, long length, double* by_row, double* columns) {
    V total[ROWS] = {};
    registers(length, [&](long i, auto left) {
        V sum = load(columns + i, left);
        for (int r = 0; r < ROWS; ++r) {
            const V x = load(p + r * length + i, left);
            total[r] += x, sum += x;
        }
        store(columns + i, sum, left);
    });
    for (int r = 0; r < ROWS; ++r) by_row[r] = sum(total[r]);
}

// The sums of every row and of every column of (rows, length).
template <class A>
void profiles(const A* p, long rows, long length, double* by_row, double* by_column, long threads) {
    const long blocks = std::min(64L, shares(rows, length));
    std::vector<double> found(blocks * length);
    shared(blocks, SHARE, threads, [&](long b, long, long) {
        long r = rows * b / blocks;
        const long end = rows * (b + 1) / blocks;
        for (; r + 4 <= end; r += 4) profiles<4>(p + r * length, length, by_row + r, &found[b * length]);
        for (; r < end; ++r) profiles<1>(p + r * length, length, by_row + r, &found[b * length]);
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
Fit fit(const A* log_p, A* log_k, const A* d, A* out, long n, const Rule by) {
    V mass{}, reproduced{}, missed{}, worst = all(-INFINITY), most = worst, least = worst;
    M wrong{}, rare{};
    registers(n, [&](long i, auto left) {
        const V a = load(log_p + i, left, -INFINITY), k = load(log_k + i, left, -1000), old = load(d + i, left);
        const V b = k + by.weight * old, ratio = a - b;
        const V new_d = larger(by.least + by.eps * k, old + by.rate * ratio);  // NaN where that is
        const V p = masses_of<P>(a), r = exp_of<P>(b), miss = p - r;
        store(out + i, new_d, left), store(log_k + i, p, left);
        wrong |= undefined(new_d) | (M)(larger(a, b) > 709);  // NaN, or no number in double
        rare |= odd(a);
        worst = larger(ratio, worst);
        most = larger(left < L ? first(new_d, left) : new_d, most);
        least = larger(left < L ? first(-new_d, left) : -new_d, least);
        mass += p, reproduced += r, missed += larger(miss, -miss);
    });
    const bool lost = any(wrong);
    if (lost || any(rare)) mend(log_p, log_k, n);
    return {sum(mass), sum(reproduced), sum(missed), top(worst), top(most), -top(least), double(lost)};
}

template <class P, class A>
Fit fit(const A* log_p, A* log_k, const A* d, A* out, long n, const Rule& by, long threads) {
    std::vector<Fit> found(shares(n, 1));
    shared(n, 1, threads, [&](long s, long from, long to) {
        found[s] = fit<P>(log_p + from, log_k + from, d + from, out + from, to - from, by);
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
        shared(n, 1, threads, [=](long, long from, long to) {
            masses<decltype(precision)>((const A*)log_p + from, (A*)p + from, to - from);
        });
    });
}

extern "C" double bigjko_divide(const void* q, const void* log_q, void* log_k, long n, long single, long threads) {
    return in_dtype(single, [&](auto, auto a) {
        using A = decltype(a);
        return total(n, threads, [=](long from, long some) {
            return divide((const A*)q + from, (const A*)log_q + from, (A*)log_k + from, some);
        });
    });
}

// Along the middle axis of (before, n, after), whose last nodes have none above them.
extern "C" double bigjko_rises(const void* p, long before, long n, long after, long single, long threads) {
    const long line = n * after;
    return in_dtype(single, [&](auto, auto a) {
        return total(before * line, threads, [=](long from, long some) {
            double sum = 0;
            for (const long to = from + some; from < to;) {
                const long top = from / line * line + line - after, end = std::min(to, top);
                if (from < end) sum += rises((const decltype(a)*)p + from, after, end - from);
                from = end < to ? top + after : to;
            }
            return sum;
        });
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
