// How a debiasing potential d fits a measure p, r being what it reproduces, and d moved towards it, in one pass:
//
//     new_i = max(d_i + rate log(p_i/r_i), least + eps log r_i - slope d_i),
//     the sums of p, r and |p - r|,   the largest log(p_i/r_i) and the largest new_i
//
// Chunks have sums of their own, added in order: threads do not change a bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr long CHUNK = 1 << 15;

typedef float F __attribute__((vector_size(4 * L), aligned(4), may_alias));
inline V load(const double* p) { return *(const V*)p; }
inline V load(const float* p) { return __builtin_convertvector(*(const F*)p, V); }
inline void store(double* p, V x) { *(V*)p = x; }
inline void store(float* p, V x) { *(F*)p = __builtin_convertvector(x, F); }

struct Rule {
    double rate, eps, slope, least;
};

struct Fit {
    double mass = 0, reproduced = 0, missed = 0, worst = -INFINITY, top = -INFINITY, undefined = 0;
};

template <class P, class A>
struct Sums {
    const Rule& by;
    V mass{}, reproduced{}, missed{}, worst = all(-INFINITY), top = worst;
    M undefined{};

    void add(const A* log_p, const A* log_r, const A* d, A* out) {
        const V a = load(log_p), b = load(log_r), ratio = a - b, old = load(d);
        const V moved = larger(by.least + by.eps * b - by.slope * old, old + by.rate * ratio);  // NaN where that is
        const V p = exp_of<P>(a), r = exp_of<P>(b), miss = p - r;
        store(out, moved);
        undefined |= (M)(moved != moved) | (M)(larger(a, b) > 709);  // NaN, or no number in double
        worst = larger(ratio, worst), top = larger(moved, top);
        mass += p, reproduced += r, missed += larger(miss, -miss);
    }

    Fit found() const {
        Fit f;
        for (int l = 0; l < L; ++l) {
            f.mass += mass[l], f.reproduced += reproduced[l], f.missed += missed[l];
            f.worst = std::max(f.worst, worst[l]), f.top = std::max(f.top, top[l]);
            f.undefined += undefined[l] != 0;
        }
        return f;
    }
};

template <class P, class A>
void fit(const A* log_p, const A* log_r, const A* d, A* out, long n, const Rule& by, long threads, Fit* result) {
    const long chunks = (n + CHUNK - 1) / CHUNK;
    std::vector<Fit> found(chunks);
    std::atomic<long> next{0};
    auto work = [&] {
        for (long c; (c = next++) < chunks;) {
            Sums<P, A> sums{by};
            long i = c * CHUNK;
            const long end = std::min(n, i + CHUNK);
            for (; i + L <= end; i += L) sums.add(log_p + i, log_r + i, d + i, out + i);
            if (i < end) {  // filled up with nodes that have no mass and count nowhere
                A part[4][L];
                for (int l = 0; l < L; ++l) part[0][l] = -INFINITY, part[1][l] = -1000, part[2][l] = 0;
                const long left = end - i;
                std::copy(log_p + i, log_p + end, part[0]);
                std::copy(log_r + i, log_r + end, part[1]);
                std::copy(d + i, d + end, part[2]);
                sums.add(part[0], part[1], part[2], part[3]);
                std::copy(part[3], part[3] + left, out + i);
            }
            found[c] = sums.found();
        }
    };
    on_threads(std::min(threads, chunks), work);
    for (const Fit& f : found) {
        result->mass += f.mass, result->reproduced += f.reproduced, result->missed += f.missed;
        result->worst = std::max(result->worst, f.worst), result->top = std::max(result->top, f.top);
        result->undefined += f.undefined;
    }
}

}  // namespace

extern "C" void bigjko_fit(const void* log_p, const void* log_r, const void* d, void* out, long n, long single,
                           const double* by, long threads, double* result) {
    const Rule rule{by[0], by[1], by[2], by[3]};
    Fit found;
    auto run = [&](auto precision, auto a) {
        using A = decltype(a);
        fit<decltype(precision)>((const A*)log_p, (const A*)log_r, (const A*)d, (A*)out, n, rule, threads, &found);
    };
    single ? run(Single(), float()) : run(Double(), double());
    const double values[] = {found.mass, found.reproduced, found.missed, found.worst, found.top};
    for (int k = 0; k < 5; ++k) result[k] = found.undefined ? NAN : values[k];
}
