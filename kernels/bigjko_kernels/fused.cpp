// One axis of the separable kernel: out_i = log sum_k exp(-c_ik/eps + b_k) along every line, 16 lines at a time.
//
// Nodes lie in tiles of 8; I is a tile of outputs, J one of inputs, r the middle node of I. For k in J
//
//     out_i = s + a_i + log sum_J f_iJ sum_{k in J} R_ik e_k,   e_k = exp(b_k - c_rk/eps - s),   f_iJ = exp(a_iJ - a_i)
//     R_ik = exp(-(c_ik - c_rk)/eps - a_iJ),   a_iJ = max_{k in J} -(c_ik - c_rk)/eps,   a_i = max_J a_iJ
//
// with s the largest b_k - c_rk/eps of each line. However steep b is, the terms that make out_i are then within
// a few hundred of s + a_i: a drift of 100 nodes costs no more than none. R, a, c_r come in blocks, one a pair (I, J).
//
// A tile is left out only where a bound says that all of it is below exp(-MARGIN)/n of every output of I: first by
// the largest b of a tile (or of 8 tiles, a group) and the smallest cost, then by its largest b_k - c_rk/eps. Sums
// that may have lost terms to underflow are done again, each line by itself; if that does not help, +inf marks them.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

namespace {

constexpr int T = 8, W = 16, GROUP = 8;        // nodes a tile, lines a block, tiles a group
constexpr double MARGIN = 40, TINY = 1e-280;   // exp(-40) is below half an ulp; a sum below TINY may lack terms
constexpr int REF = 64, TOP = 72, LOW = 80, TOP_ALL = 88, LOW_ALL = 89, BLOCK = 96;  // within a block; R first
constexpr unsigned ALL = (1u << W) - 1;
constexpr int32_t ABSENT = -1, WANTED = -2;

typedef double V __attribute__((vector_size(64), aligned(8), may_alias));
typedef int64_t M __attribute__((vector_size(64)));

inline V& at(double* p) { return *reinterpret_cast<V*>(p); }
inline const V& at(const double* p) { return *reinterpret_cast<const V*>(p); }
inline V all(double x) { return V{} + x; }

#ifdef __AVX512DQ__
inline V larger(V a, V b) { return (V)_mm512_max_pd((__m512d)a, (__m512d)b); }
inline unsigned reaches(V a, V b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ); }
#else
inline V larger(V a, V b) { return a > b ? a : b; }
inline unsigned reaches(V a, V b) {  // one bit a line: a >= b
    M m = a >= b;
    unsigned bits = 0;
    for (int l = 0; l < T; ++l) bits |= unsigned(m[l] & 1) << l;
    return bits;
}
#endif

inline double most(V v) {
    double m = v[0];
    for (int l = 1; l < T; ++l) m = std::max(m, v[l]);
    return m;
}

// exp of x <= 0 (minimax of degree 11 on |r| <= log(2)/2: 3e-18), 0 below -708
inline V exp_of(V x) {
    const double magic = 0x1.8p52;
    V shifted = x * 0x1.71547652b82fep0 + magic, n = shifted - magic;
    V r = x - n * 0x1.62e42fefa39efp-1 - n * 0x1.abc9e3b39803fp-56;
    V p = all(2.51100492048186598e-8);
    for (double c : {2.76326547225277919e-7, 2.75572408872298686e-6, 2.4801485441561313e-5, 1.98412698900764028e-4,
                     1.38888889523528629e-3, 8.33333333331958962e-3, 4.16666666664879525e-2, 1.66666666666666808e-1,
                     5.0000000000000184e-1, 1.0, 1.0})
        p = p * r + c;
    V y = (V)((M)p + ((M)shifted << 52));
    return x < -708.0 ? V{} : y;
}

// log of a normal x > 0 (2 atanh(f), minimax of degree 13 in f: 1e-17)
inline V log_of(V x) {
    const int64_t half = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
    M e = ((M)x - half) >> 52;
    V m = (V)((M)x - (e << 52)), n = __builtin_convertvector(e, V);
    V f = (m - 1.0) / (m + 1.0), z = f * f, p = all(0.146164496850434059);
    for (double c : {0.153317216005560413, 0.181828891252617221, 0.222222111347950799, 0.285714286259754849,
                     0.399999999998995045, 0.666666666666666969})
        p = p * z + c;
    return n * 0x1.62e42fefa39efp-1 + (f * 2.0 + f * z * p);
}

struct Axis {
    long n, tiles, groups;
    const double *near;                    // (tiles, tiles): largest -c/eps between two tiles
    const double *group_near, *group_far;  // (tiles, groups): largest and smallest -c/eps between a tile and a group
    int32_t* where;                        // (tiles, tiles): a pair's block, or ABSENT or WANTED
    const double* blocks;
    long last;  // no more blocks will come: mark outputs that lack one
};

struct Work {  // one thread's
    const Axis& a;
    std::vector<double> x, y, top, group_top, t, t_top, factor;
    std::vector<int> star, tile;
    std::vector<const double*> block;
    const double margin;
    bool missing = false, wrong = false;

    explicit Work(const Axis& axis)
        : a(axis), x(axis.tiles * T * W), y(x.size()), top(axis.tiles * W), group_top(axis.groups * W), t(x.size()),
          t_top(top.size()), factor(axis.tiles * T * T), star(axis.tiles), tile(axis.tiles), block(axis.tiles),
          margin(MARGIN + std::log(double(axis.n))) {
        for (long i = 0; i < a.tiles; ++i) star[i] = int(i);
    }

    // Largest entries of every tile and group, from x. Returns the lines that hold no NaN and no +inf.
    unsigned tops() {
        unsigned good = ALL;
        for (long g = 0; g < a.groups; ++g) at(&group_top[g * W]) = at(&group_top[g * W + T]) = all(-INFINITY);
        for (long j = 0; j < a.tiles; ++j) {
            const double* p = &x[j * T * W];
            double* g = &group_top[j / GROUP * W];
            for (int h = 0; h < W; h += T) {
                V m = all(-INFINITY);
                for (int k = 0; k < T; ++k) {
                    m = larger(m, at(p + k * W + h));
                    good &= reaches(all(DBL_MAX), at(p + k * W + h)) << h | (ALL & ~(255u << h));
                }
                at(&top[j * W + h]) = m;
                at(g + h) = larger(at(g + h), m);
            }
        }
        return good;
    }

    // The outputs of tile I on the lines of mask, into y. Returns the lines whose sums may lack terms.
    unsigned outputs(long i, unsigned mask, bool mark) {
        V low[2];  // lower bounds of every output of I; -DBL_MAX rather than -inf: see `reaches`
        low[0] = low[1] = all(-DBL_MAX);
        const double *near = a.near + i * a.tiles, *gn = a.group_near + i * a.groups, *gf = a.group_far + i * a.groups;
        for (long g = 0; g < a.groups; ++g)
            for (int h = 0; h < 2; ++h) low[h] = larger(low[h], at(&group_top[g * W + h * T]) + gf[g]);
        auto any = [&](V p0, V p1, V q0, V q1) { return (reaches(p0, q0) | reaches(p1, q1) << T) & mask; };
        int count = 0;
        bool lacks = false;
        auto take = [&](long j) {
            int32_t p = __atomic_load_n(a.where + i * a.tiles + j, __ATOMIC_RELAXED);
            if (p < 0) {
                if (p == ABSENT && !a.last) __atomic_store_n(a.where + i * a.tiles + j, WANTED, __ATOMIC_RELAXED);
                lacks = true;
                return;
            }
            const double* b = a.blocks + long(p) * BLOCK;
            for (int h = 0; h < 2; ++h) {
                double* to = &t[count * T * W + h * T];
                const double* from = &x[j * T * W + h * T];
                V m = all(-INFINITY);
                for (int k = 0; k < T; ++k) m = larger(m, at(to + k * W) = at(from + k * W) + b[REF + k]);
                at(&t_top[count * W + h * T]) = m;
                low[h] = larger(low[h], m + b[LOW_ALL]);
            }
            tile[count] = int(j);
            block[count++] = b;
        };
        const long guess = star[i];  // where the lines before had it
        if (any(at(&top[guess * W]), at(&top[guess * W + T]), all(-DBL_MAX), all(-DBL_MAX))) take(guess);
        for (long g = 0; g < a.groups; ++g) {
            const double* p = &group_top[g * W];
            if (!any(at(p) + gn[g], at(p + T) + gn[g], low[0] - margin, low[1] - margin)) continue;
            for (long j = g * GROUP; j < std::min(a.tiles, (g + 1) * GROUP); ++j) {
                const double* q = &top[j * W];
                if (j != guess && any(at(q) + near[j], at(q + T) + near[j], low[0] - margin, low[1] - margin)) take(j);
            }
        }
        if (lacks) {
            missing |= !a.last;
            return mark ? fill(i, mask, INFINITY) : mask;
        }
        // s, the tile that has it on most lines, and by its entries a second bound which knows I's own slope
        V s[2];
        s[0] = s[1] = all(-INFINITY);
        for (int c = 0; c < count; ++c)
            for (int h = 0; h < 2; ++h) s[h] = larger(s[h], at(&t_top[c * W + h * T]));
        int best = 0, votes = -1;
        for (int c = 0; c < count; ++c) {
            const double* p = &t_top[c * W];
            int v = __builtin_popcount(any(at(p), at(p + T), larger(s[0], all(-DBL_MAX)), larger(s[1], all(-DBL_MAX))));
            if (v > votes) best = c, votes = v;
        }
        int kept = 0;
        V a_i = all(-DBL_MAX);
        if (count) {
            star[i] = tile[best];
            V own = at(block[best] + LOW), t0 = at(&t_top[best * W]), t1 = at(&t_top[best * W + T]);
            for (int c = 0; c < count; ++c) {
                V above = at(block[c] + TOP);
                double d = margin + most(above - own), e = margin + block[c][TOP_ALL];
                const double* p = &t_top[c * W];
                if (!any(at(p), at(p + T), larger(t0 - d, low[0] - e), larger(t1 - d, low[1] - e))) continue;
                tile[kept] = c;
                a_i = larger(a_i, above);
                ++kept;
            }
        }
        const unsigned filled = any(s[0], s[1], all(-DBL_MAX), all(-DBL_MAX));
        s[0] = larger(s[0], all(-DBL_MAX));
        s[1] = larger(s[1], all(-DBL_MAX));
        V sum[T][2] = {};
        for (int m = 0; m < kept; ++m) {
            const double *b = block[tile[m]], *p = &t[tile[m] * T * W];
            V f = exp_of(at(b + TOP) - a_i);
            double r[T * T], e[T * W];
            for (int k = 0; k < T; ++k) at(r + k * T) = at(b + k * T) * f;
            for (int k = 0; k < T * W; k += W) {
                at(e + k) = exp_of(at(p + k) - s[0]);
                at(e + k + T) = exp_of(at(p + k + T) - s[1]);
            }
            for (int k = 0; k < T; ++k) {
                V e0 = at(e + k * W), e1 = at(e + k * W + T);
#pragma GCC unroll 8
                for (int q = 0; q < T; ++q) sum[q][0] += r[k * T + q] * e0, sum[q][1] += r[k * T + q] * e1;
            }
        }
        unsigned torn = 0;
        for (int q = 0; q < T; ++q) {
            double* to = &y[(i * T + q) * W];
            V out[2];
            for (int h = 0; h < 2; ++h) out[h] = s[h] + (log_of(larger(sum[q][h], all(DBL_MIN))) + a_i[q]);
            const unsigned bad = filled & ~any(sum[q][0], sum[q][1], all(TINY), all(TINY));
            torn |= bad;
            if ((filled & ~bad) == ALL) {
                at(to) = out[0], at(to + T) = out[1];
                continue;
            }
            for (int l = 0; l < W; ++l)
                if (mask >> l & 1)
                    to[l] = !(filled >> l & 1) ? -INFINITY : (bad >> l & 1) ? INFINITY : out[l / T][l % T];
        }
        wrong |= mark && torn;
        return torn;
    }

    unsigned fill(long i, unsigned mask, double value) {
        wrong |= value == INFINITY;
        for (int q = 0; q < T; ++q)
            for (int l = 0; l < W; ++l)
                if (mask >> l & 1) y[(i * T + q) * W + l] = value;
        return 0;
    }

    // One block of lines, from x into y; false where blocks of the kernel are missing.
    bool lines() {
        const unsigned good = tops();
        for (long i = 0; i < a.tiles; ++i) {
            const unsigned torn = outputs(i, good, false);
            for (int l = 0; l < W && !missing; ++l)
                if (torn >> l & 1) outputs(i, 1u << l, true);
            if (good != ALL) fill(i, ALL & ~good, NAN);
        }
        return !std::exchange(missing, false);
    }
};

// Lines of `values` (W of them, `stride` between nodes) to and from columns of W.
template <class A>
void read(long n, const A* values, const long* line, long stride, double* columns) {
    if (line[W - 1] - line[0] == W - 1)
        for (long k = 0; k < n; ++k)
            for (int l = 0; l < W; ++l) columns[k * W + l] = values[line[0] + k * stride + l];
    else
        for (int l = 0; l < W; ++l)
            for (long k = 0; k < n; ++k) columns[k * W + l] = values[line[l] + k * stride];
}

template <class A>
void write(long n, const double* columns, const long* line, long stride, A* values) {
    if (line[W - 1] - line[0] == W - 1)
        for (long k = 0; k < n; ++k)
            for (int l = 0; l < W; ++l) values[line[0] + k * stride + l] = A(columns[k * W + l]);
    else
        for (int l = 0; l < W; ++l)
            for (long k = 0; k < n; ++k) values[line[l] + k * stride] = A(columns[k * W + l]);
}

template <class A, class B>
void run(const Axis& a, const A* in, B* out, long before, long after, uint8_t* done, std::atomic<long>& next,
         std::atomic<long>& missing, std::atomic<long>& wrong) {
    Work w(a);
    const long count = before * after;
    std::fill(w.x.begin(), w.x.end(), -INFINITY);
    long line[W];
    for (long block; (block = next++) * W < count;) {
        if (done[block]) continue;
        for (int l = 0; l < W; ++l) {  // lines beyond the last are copies of it
            const long q = std::min(block * W + l, count - 1);
            line[l] = q / after * a.n * after + q % after;
        }
        read(a.n, in, line, after, w.x.data());
        if ((done[block] = w.lines())) write(a.n, w.y.data(), line, after, out);
        else ++missing;
    }
    wrong += w.wrong;
}

template <class A, class B>
void spread(const Axis* a, const void* in, void* out, long before, long after, uint8_t* done, long threads,
            long* result) {
    std::atomic<long> next{0}, missing{0}, wrong{0};
    auto work = [&] { run(*a, (const A*)in, (B*)out, before, after, done, next, missing, wrong); };
    std::vector<std::thread> others;
    for (long i = 1; i < std::min(threads, (before * after + W - 1) / W); ++i) others.emplace_back(work);
    work();
    for (auto& t : others) t.join();
    result[0] = missing, result[1] = wrong;
}

}  // namespace

// Values of shape (before, n, after). result: how many blocks of lines lack blocks of the kernel, and whether any
// output was marked +inf.
extern "C" void bigjko_lines(const Axis* a, const void* in, long in32, void* out, long out32, long before, long after,
                             uint8_t* done, long threads, long* result) {
    auto f = in32 ? (out32 ? spread<float, float> : spread<float, double>)
                  : (out32 ? spread<double, float> : spread<double, double>);
    f(a, in, out, before, after, done, threads, result);
}
