// What a step does to arrays of N between applications of the kernel, each in one pass. Sums are double whatever the
// dtype, and belong to shares of the nodes that do not depend on threads, which do not change a bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr long SHARE = 1 << 14;  // nodes

// exp(a), but for what `odd` says.
template <class P>
inline V masses_of(V a) {
    V p = exp_of<P>(a);
    p -= p * (a * 3.3457e-17);  // what exp_of lost to the rounding of log(2)
    return (V)((M)p & (M)(a >= -708));
}
inline M odd(V a) { return (M)(a > -746) & ~((M)(a >= -708) & (M)(a <= 709)); }  // no normal number
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

template <class A>
void scale(const A* x, double by, A* out, long n) {
    registers(n, [=](long i, auto left) { store(out + i, by * load(x + i, left), left); });
}

// out = a x + b y.
template <class A>
void combine(const A* x, double a, const A* y, double b, A* out, long n) {
    registers(n, [=](long i, auto left) { store(out + i, a * load(x + i, left) + b * load(y + i, left), left); });
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

// x = shift - log(1 + x) / eps, NaN where x <= -1; returns the least x, or NaN.
template <class A>
double reciprocal(A* x, const A* shift, double eps, long n) {
    V least = all(INFINITY);
    M wrong{};
    registers(n, [&](long i, auto left) {
        const V a = smaller(all(1e300), load(x + i, left)), u = a + 1.0;  // so that inf - inf is not met
        const M none = (M)(u == 1.0), there = (M)(a > -1.0);  // of NaN neither
        // log(u) a / (u - 1): the rounding of u goes out of it (Kahan).
        const V log = log_of<Double>((V)(((M)u & there) | ((M)all(1) & ~there))) * (a / (u - 1.0));
        const V y = load(shift + i, left) - (V)(((M)a & none) | ((M)log & ~none)) * (1 / eps);
        store(x + i, (V)((M)y | ~there), left);
        least = -larger(left < L ? first(-a, left) : -a, -least);
        wrong |= undefined(a);
    });
    return any(wrong) ? NAN : -top(-least);
}

// log_k = shift + (log_q - k) / (1 + eps), k = log_k + shift; returns the sum of exp((log_q + eps k) / (1 + eps)).
template <class A>
double damp(const A* log_q, const A* shift, A* log_k, double eps, long n) {
    V total{};
    M wrong{};
    const double by = 1 / (1 + eps);
    registers(n, [&](long i, auto left) {
        const V q = load(log_q + i, left, -INFINITY), s = load(shift + i, left), k = load(log_k + i, left) + s;
        const V a = (q + k * eps) * by;
        total += masses_of<Double>(a);
        wrong |= undefined(a) | (M)(a > 709);
        store(log_k + i, s + (q - k) * by, left);
    });
    return any(wrong) ? NAN : sum(total);
}

// The sum of (x - y)^2.
double apart(const double* x, const double* y, long n) {
    V total{};
    registers(n, [&](long i, auto left) {
        const V d = load(x + i, left) - load(y + i, left);
        total += d * d;
    });
    return sum(total);
}

struct Lead {  // an axis before the last: its nodes, rows from one to the next, nodes [low, high) that lie inside
    long n, stride, low, high, rising;
};

// The roots of a row, which is added to `columns`; returns its sum.
template <class A>
double roots(const A* p, double* root_p, double* columns, long n) {
    V total{};
    registers(n, [&](long i, auto left) {
        const V x = load(p + i, left);
        total += x;
        store(root_p + i, root(x), left);
        store(columns + i, load(columns + i, left) + x, left);
    });
    return sum(total);
}

// Of p (rows, length): the sums of every row and of every column; in `result` that of what is not inside along some axis,
// and those of (sqrt(p') - sqrt(p))^2 over neighbours along every axis that is rising, and along rows. Every root is
// taken once: those of as many rows are kept as lie between neighbours.
template <class A>
void look(const A* p, long rows, long length, const Lead* leads, long some, long low, long high, double* by_row,
          double* by_column, double* result, long threads) {
    long back = 0;
    for (long k = 0; k < some; ++k)
        if (leads[k].rising) back = std::max(back, leads[k].stride);
    const long each = std::max({1L, SHARE / length, 8 * back, (rows + 63) / 64}), all = (rows + each - 1) / each;
    const long sums = some + 2, size = sums + length;
    std::vector<double> found(all * size);
    std::atomic<long> next{0};
    auto work = [&] {
        std::vector<double> kept((back + 1) * length), spare(back ? length : 0);
        auto at = [&](long r) { return &kept[r % (back + 1) * length]; };
        for (long s; (s = next++) < all;) {
            const long from = s * each, to = std::min(rows, from + each);
            double *mine = &found[s * size], *columns = mine + sums;
            for (long r = std::max(0L, from - back); r < from; ++r) roots(p + r * length, at(r), spare.data(), length);
            for (long r = from; r < to; ++r) {
                const A* row = p + r * length;
                by_row[r] = roots(row, at(r), columns, length);
                bool inside = true;
                for (long k = 0; k < some; ++k) {
                    const Lead& axis = leads[k];
                    const long i = r / axis.stride % axis.n;
                    inside &= axis.low <= i && i < axis.high;
                    if (axis.rising && i) mine[1 + k] += apart(at(r), at(r - axis.stride), length);
                }
                mine[some + 1] += apart(at(r) + 1, at(r), length - 1);
                if (!inside) {
                    mine[0] += by_row[r];
                } else {
                    for (long i = 0; i < low; ++i) mine[0] += row[i];
                    for (long i = high; i < length; ++i) mine[0] += row[i];
                }
            }
        }
    };
    on_threads(std::min(threads, all), work);
    std::fill(result, result + sums, 0.0);
    std::fill(by_column, by_column + length, 0.0);
    for (long s = 0; s < all; ++s) {
        for (long k = 0; k < sums; ++k) result[k] += found[s * size + k];
        for (long i = 0; i < length; ++i) by_column[i] += found[s * size + sums + i];
    }
}

// ---------------------------------------------------------------------------------------------------------------- fits

// How a debiasing potential d fits a measure p, r = k exp(weight d) being what it reproduces, and d moved towards it:
//
//     new_i = max(d_i + rate log(p_i/r_i), least + eps log k_i),   p_i in place of log k_i,
//     the sums of p, r and |p - r|,   the largest log(p_i/r_i), the largest and the smallest new_i
//
// Not TOLD: only what takes no exponential, new_i, the largest and the smallest of them; log k stays.
struct Rule {
    double weight, rate, eps, least;
};

struct Fit {
    double mass = 0, reproduced = 0, missed = 0, worst = -INFINITY, top = -INFINITY, low = INFINITY, undefined = 0;
};

template <class P, bool TOLD, class A>
Fit fit(const A* log_p, A* log_k, const A* d, A* out, long n, const Rule by) {
    V mass{}, reproduced{}, missed{}, worst = all(-INFINITY), most = worst, least = worst;
    M wrong{}, rare{};
    registers(n, [&](long i, auto left) {
        const V a = load(log_p + i, left, -INFINITY), k = load(log_k + i, left, -1000), old = load(d + i, left);
        const V b = k + by.weight * old, ratio = a - b;
        const V new_d = larger(by.least + by.eps * k, old + by.rate * ratio);  // NaN where that is
        store(out + i, new_d, left);
        wrong |= undefined(new_d) | (M)(larger(a, b) > 709);  // NaN, or no number in double
        most = larger(left < L ? first(new_d, left) : new_d, most);
        least = larger(left < L ? first(-new_d, left) : -new_d, least);
        if constexpr (TOLD) {
            const V p = masses_of<P>(a), r = exp_of<P>(b), miss = p - r;
            store(log_k + i, p, left);
            rare |= odd(a);
            worst = larger(ratio, worst);
            mass += p, reproduced += r, missed += larger(miss, -miss);
        }
    });
    const bool lost = any(wrong);
    if (TOLD && (lost || any(rare))) mend(log_p, log_k, n);
    return {sum(mass), sum(reproduced), sum(missed), top(worst), top(most), -top(least), double(lost)};
}

template <class P, bool TOLD, class A>
Fit fit(const A* log_p, A* log_k, const A* d, A* out, long n, const Rule& by, long threads) {
    std::vector<Fit> found(shares(n, 1));
    shared(n, 1, threads, [&](long s, long from, long to) {
        found[s] = fit<P, TOLD>(log_p + from, log_k + from, d + from, out + from, to - from, by);
    });
    Fit total;
    for (const Fit& f : found) {
        total.mass += f.mass, total.reproduced += f.reproduced, total.missed += f.missed;
        total.worst = std::max(total.worst, f.worst), total.top = std::max(total.top, f.top);
        total.low = std::min(total.low, f.low), total.undefined += f.undefined;
    }
    return total;
}

}  // namespace

extern "C" void bigjko_masses(const void* log_p, void* p, long n, long single, long threads) {
    in_dtype(single, [&](auto precision, auto a) {
        using A = decltype(a);
        shared(n, 1, threads, [=](long, long from, long to) {
            masses<decltype(precision)>((const A*)log_p + from, (A*)p + from, to - from);
        });
    });
}

// What a kernel may ask for share by share.
struct Scaling {
    const void* x;
    double by;
    void* out;
    long single;
};
extern "C" void bigjko_scale(const Scaling* s, long, long from, long to) {
    in_dtype(s->single, [&](auto, auto a) {
        using A = decltype(a);
        scale((const A*)s->x + from, s->by, (A*)s->out + from, to - from);
    });
}

struct Division {
    const void *q, *log_q;
    void* log_k;
    double* sums;  // one a share
    long single;
};
extern "C" void bigjko_divide(const Division* d, long share, long from, long to) {
    d->sums[share] = in_dtype(d->single, [&](auto, auto a) {
        using A = decltype(a);
        return divide((const A*)d->q + from, (const A*)d->log_q + from, (A*)d->log_k + from, to - from);
    });
}

struct Made {  // by another function, share by share or all at once
    void (*make)(const void*, long, long, long);
    const void* what;
};

struct Reciprocal {
    Made x;  // or nothing, if it is made
    void* at;
    const void* shift;
    double eps;
    double* least;  // one a share
    long single;
};
extern "C" void bigjko_reciprocal(const Reciprocal* r, long share, long from, long to) {
    if (r->x.make) r->x.make(r->x.what, share, from, to);
    r->least[share] = in_dtype(r->single, [&](auto, auto a) {
        using A = decltype(a);
        return reciprocal((A*)r->at + from, (const A*)r->shift + from, r->eps, to - from);
    });
}

struct Damped {
    const void *log_q, *shift;
    void* log_k;
    double eps;
    double* sums;  // one a share
    long single;
};
extern "C" void bigjko_damp(const Damped* d, long share, long from, long to) {
    d->sums[share] = in_dtype(d->single, [&](auto, auto a) {
        using A = decltype(a);
        return damp((const A*)d->log_q + from, (const A*)d->shift + from, (A*)d->log_k + from, d->eps, to - from);
    });
}

// out = a x + b y, and what follows.
struct Combination {
    const void *x, *y;
    double a, b;
    void* out;
    long n, single, threads;
    const Made* then;
};
extern "C" void bigjko_combine(const Combination* c, long, long from, long to) {
    in_dtype(c->single, [&](auto, auto a) {
        using A = decltype(a);
        combine((const A*)c->x + from, c->a, (const A*)c->y + from, c->b, (A*)c->out + from, to - from);
    });
}
// Whatever the range: what follows a kernel is told none.
extern "C" void bigjko_combine_all(const Combination* c, long, long, long) {
    shared(c->n, 1, c->threads, [=](long share, long from, long to) { bigjko_combine(c, share, from, to); });
    if (c->then) c->then->make(c->then->what, 0, 0, 0);
}

// All of it at once.
extern "C" void bigjko_whole(void (*make)(const void*, long, long, long), const void* what, long n, long threads) {
    shared(n, 1, threads, [=](long share, long from, long to) { make(what, share, from, to); });
}

extern "C" void bigjko_look(const void* p, long rows, long length, const Lead* leads, long some, long low, long high,
                            double* by_row, double* by_column, double* result, long single, long threads) {
    in_dtype(single, [&](auto, auto a) {
        look((const decltype(a)*)p, rows, length, leads, some, low, high, by_row, by_column, result, threads);
    });
}

// What a kernel may call when it is done.
struct Fitting {
    const void* log_p;
    void* log_k;
    const void* d;
    void* out;
    long n, single;
    Rule rule;
    long told, threads;
    double* result;
};
extern "C" void bigjko_fit(const Fitting* given, long, long, long) {
    const Fit f = in_dtype(given->single, [&](auto precision, auto a) {
        using A = decltype(a);
        using P = decltype(precision);
        const auto p = (const A*)given->log_p, d = (const A*)given->d;
        const auto k = (A*)given->log_k, out = (A*)given->out;
        const auto moved = [=](auto told) {
            return fit<P, decltype(told)::value>(p, k, d, out, given->n, given->rule, given->threads);
        };
        return given->told ? moved(std::true_type()) : moved(std::false_type());
    });
    const double values[] = {f.mass, f.reproduced, f.missed, f.worst, f.top, f.low};
    for (int k = 0; k < 6; ++k) given->result[k] = f.undefined ? NAN : values[k];
}
