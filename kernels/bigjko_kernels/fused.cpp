// One axis of the separable kernel: out_i = log sum_k exp(-c_ik/eps + b_k) along every line, 16 lines at a time.
//
// Nodes lie in tiles of 8; I is a tile of outputs, J one of inputs. With m_J the largest b_k and n_IJ the largest
// -c_ik/eps of such tiles, and s the largest m_J + n_IJ of a line,
//
//     out_i = s + log sum_J g_J sum_{k in J} Q_ik e_k,   e_k = exp(b_k - m_J),   g_J = exp(m_J + n_IJ - s)
//     Q_ik = exp(-c_ik/eps - n_IJ)
//
// which is one exponential a node. It loses nothing where a lower bound of the outputs reaches s - SPREAD: exp(-SPREAD)
// is in every sum. Single grids take it in floats, twice as many a register, where the bound reaches s - SPREAD_LANES,
// within an ulp of the output and 2.4e-6. Else, with r the middle node of I and s the largest b_k - c_rk/eps,
//
//     out_i = s + a_i + log sum_J f_iJ sum_{k in J} R_ik e_k,   e_k = exp(b_k - c_rk/eps - s),   f_iJ = exp(a_iJ - a_i)
//     R_ik = exp(-(c_ik - c_rk)/eps - a_iJ),   a_iJ = max_{k in J} -(c_ik - c_rk)/eps,   a_i = max_J a_iJ
//
// However steep b is, the terms that make out_i are within a few hundred of s + a_i, so that a drift of 100 nodes costs
// what one of 40 does. Q, R, a and c_r come in blocks, one a pair (I, J), made by the caller when first wanted.
//
// Where b rises little from node to node that is known from its slopes alone, with the largest b_k of I for s (gentle).
//
// A tile is left out only where a bound says that all of it is below exp(-margin)/n of every output of I: by its
// largest b (or that of 8 tiles, a group) and the smallest cost; then, where known, by its largest b_k - c_rk/eps.
// Where a sum may have lost terms to underflow, each line is done again by itself; what still may have is marked +inf,
// for the caller to mend.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int SUMS = L == 8 ? 8 : L / 2;  // rows of outputs whose sums fit the registers
constexpr int T = 8, W = 16, GROUP = 8, HELD = 8;  // nodes a tile, lines at a time, tiles a group, tiles of e
constexpr int REF = 64, TOP = 72, LOW = 80, TOP_ALL = 88, LOW_ALL = 89;  // within a block; R comes first
constexpr int NEAR = 90, FAR = 91, DIAGONAL = 92;  // -c_ik/eps: largest, smallest, smallest where i = k
constexpr int Q = 96, Q_LANES = 160, BLOCK = 192;
constexpr long TURNS = 32, WIDE = 4;  // least turns for threads to share, most columns a turn
constexpr long BAND = 2;              // blocks of tiles up to BAND apart are always there
constexpr int32_t ABSENT = -1, WANTED = -2;
constexpr unsigned ALL = (1u << W) - 1;
constexpr double TINY = 1e-280;  // a sum below it may lack terms
constexpr double SPREAD = 640, SPREAD_LANES = 60;  // exp(-SPREAD) > TINY, and far above what floats lose
constexpr double LEAST_LANES = 80;                 // exp(-80) to exp(80), 64 times over, are floats

template <class X>
struct Aligned {  // no vector across two lines of the cache
    typedef X value_type;
    X* allocate(size_t n) { return (X*)::operator new(n * sizeof(X), std::align_val_t(64)); }
    void deallocate(X* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned&) const { return true; }
};
using Doubles = std::vector<double, Aligned<double>>;

template <class X> struct Register { typedef V type; };
template <> struct Register<float> { typedef VF type; };

template <class X, int N>
struct Vector {  // N doubles or floats: one a line (Row, Floats), or one a node of a tile (Nodes)
    typedef typename Register<X>::type R;
    static constexpr int EACH = sizeof(R) / sizeof(X), COUNT = N / EACH;
    R v[COUNT];
    Vector() = default;
    explicit Vector(X x) { for (R& u : v) u = R{} + x; }
    explicit Vector(const X* p) { for (R& u : v) u = *(const R*)p, p += EACH; }
    void store(X* p) const { for (const R& u : v) *(R*)p = u, p += EACH; }
};
#define FOR_ALL for (int h = 0; h < Vector<X, N>::COUNT; ++h)
#define ON(...) template <class X, int N> inline Vector<X, N> __VA_ARGS__
ON(operator+(Vector<X, N> a, double x)) { FOR_ALL a.v[h] += x; return a; }
ON(operator+(Vector<X, N> a, const Vector<X, N>& b)) { FOR_ALL a.v[h] += b.v[h]; return a; }
ON(operator-(Vector<X, N> a, const Vector<X, N>& b)) { FOR_ALL a.v[h] -= b.v[h]; return a; }
ON(operator*(Vector<X, N> a, const Vector<X, N>& b)) { FOR_ALL a.v[h] *= b.v[h]; return a; }
ON(larger(Vector<X, N> a, const Vector<X, N>& b)) { FOR_ALL a.v[h] = larger(a.v[h], b.v[h]); return a; }
template <class X, int N> inline unsigned reaches(const Vector<X, N>& a, const Vector<X, N>& b) {  // a >= b, a bit each
    unsigned bits = 0;
    FOR_ALL bits |= reaches(a.v[h], b.v[h]) << h * Vector<X, N>::EACH;
    return bits;
}
using Row = Vector<double, W>;
using Floats = Vector<float, W>;
using Nodes = Vector<double, T>;

inline Floats narrow(const Row& a) {
    Floats x;
    for (int h = 0; h < Floats::COUNT; ++h) x.v[h] = narrow(a.v[2 * h], a.v[2 * h + 1]);
    return x;
}
inline void put(const Row& a, double* p) { a.store(p); }
inline void put(const Row& a, float* p) { narrow(a).store(p); }

inline double most(V a) {
    double m = a[0];
    for (int l = 1; l < L; ++l) m = std::max(m, a[l]);
    return m;
}
inline double most(const Nodes& a) {
    V m = a.v[0];
    for (const V& u : a.v) m = larger(m, u);
    return most(m);
}

template <class P, int N>
inline Vector<double, N> exp_of(Vector<double, N> a) {
    for (V& u : a.v) u = exp_of<P>(u);
    return a;
}
inline Floats exp_of(Floats a) {
    for (VF& u : a.v) u = exp_of(u);
    return a;
}

inline Row log_of(const Floats& a) {  // of floats; n log(2) in double
    Row x;
    for (int h = 0; h < Floats::COUNT; ++h) {
        const VF u = larger(a.v[h], VF{} + FLT_MIN);
        const MF e = ((MF)u - 0x3f3504f3 + (128 << 23)) >> 23;
        const VF n = (VF)(e | 0x4b000000) - (0x1p23f + 128), m = (VF)((MF)u - ((e - 128) << 23));
        const VF f = (m - 1.0f) / (m + 1.0f), z = f * f, rest = f * 2.0f + f * z * polynomial(Single::log, z);
        x.v[2 * h] = low_half(n) * 0x1.62e42fefa39efp-1 + low_half(rest);
        x.v[2 * h + 1] = high_half(n) * 0x1.62e42fefa39efp-1 + high_half(rest);
    }
    return x;
}

struct Axis {
    long n, tiles, groups;
    long around;                           // whether the last tile is beside the first
    const double *near;                    // (tiles, tiles): largest -c/eps between two tiles
    const double *apart;                   // (n,): largest -c/eps between nodes so many nodes apart
    const double *group_near, *group_far;  // (tiles, groups): largest and smallest -c/eps between a tile and a group
    int32_t* where;                        // (tiles, tiles): a pair's block, or ABSENT or WANTED
    const double* blocks;
    long last;  // no more blocks will come: outputs that lack one are marked
};

// W lines: what goes in (-inf beyond the last node), its largest entries by tile and group, and what comes out.
struct Columns {
    Doubles x, y, e, top, fall, group_top;  // y: of one tile; fall: the largest -x of each; e: exp(x - top) of some
    long held[HELD];                        // which
    unsigned good;                          // the lines without NaN and +inf
    Doubles rise[2];                        // the largest to the node before, and from it, of each tile
    double steepest[2];                     // of all

    explicit Columns(const Axis& a)
        : x(a.tiles * T * W, -INFINITY), y(T * W), e(HELD * T * W), top(a.tiles * W), fall(top),
          group_top(a.groups * W), rise{Doubles(a.tiles), Doubles(a.tiles)} {}

    void tops(const Axis& a) {
        good = ALL;
        std::fill(held, held + HELD, -1);
        Row nothing(0.0), last(&x[a.around ? (a.n - 1) * W : 0]);
        steepest[0] = steepest[1] = -INFINITY;
        for (long j = 0; j < a.tiles; ++j) {
            const double* tile = &x[j * T * W];
            const long some = std::min(long(T), a.n - j * T);
            V up = all(-INFINITY), down = all(INFINITY);
            Row m, low;
            for (int h = 0; h < Row::COUNT; ++h) {  // so that all stays in registers
                V most = all(-INFINITY), least = all(INFINITY), before = last.v[h], none = nothing.v[h];
                for (long k = 0; k < some; ++k) {
                    const V r = *(const V*)(tile + k * W + h * L), d = r - before;
                    most = larger(most, r), least = smaller(least, r);
                    up = larger(up, d), down = smaller(down, d);
                    none += r * 0.0, before = r;  // NaN for what is no number
                }
                m.v[h] = most, low.v[h] = least, last.v[h] = before, nothing.v[h] = none;
            }
            m.store(&top[j * W]);
            (Row(0.0) - low).store(&fall[j * W]);
            double* g = &group_top[j / GROUP * W];
            (j % GROUP ? larger(Row(g), m) : m).store(g);
            rise[0][j] = most(-down), rise[1][j] = most(up);
            for (int side = 0; side < 2; ++side) steepest[side] = std::max(steepest[side], rise[side][j]);
        }
        if (reaches(nothing, Row(0.0)) == ALL) return;
        steepest[0] = INFINITY;
        for (long k = 0; k < a.n; ++k) good &= reaches(Row(DBL_MAX), Row(&x[k * W]));
    }

    template <class P, class X>
    const X* calm(long j) {  // exp(x - top) of a tile
        X* to = (X*)&e[j % HELD * T * W];
        if (std::exchange(held[j % HELD], 2 * j + (sizeof(X) == 4)) != 2 * j + (sizeof(X) == 4)) {
            const Row m = larger(Row(&top[j * W]), Row(-DBL_MAX));
#pragma GCC unroll 2
            for (int k = 0; k < T * W; k += W) {
                const Row d = Row(&x[j * T * W + k]) - m;
                if constexpr (sizeof(X) == 4) exp_of(narrow(d)).store(to + k);
                else exp_of<P>(d).store(to + k);
            }
        }
        return to;
    }
};

template <class P>
struct Work {  // one thread's
    const Axis& a;
    Doubles t, t_top, factor;
    std::vector<long> from, to;  // the tiles that the last lines needed, for each I
    std::vector<int> tile;
    std::vector<const double*> block, term;
    const double margin;
    // See gentle: the steepest slope at which no tile further off matters, and no term that floats would lose; the
    // largest -c/eps between tiles so far apart.
    double slope[BAND + 1], flush = INFINITY, cap[BAND + 1];
    bool missing = false, wrong = false;

    explicit Work(const Axis& axis)
        : a(axis), t(a.tiles * T * W), t_top(a.tiles * W), factor(a.tiles * T * T), from(a.tiles), to(a.tiles),
          tile(a.tiles), block(a.tiles), term(a.tiles), margin(P::margin + std::log(double(a.n))) {
        begin();
        for (long r = 1; r <= (a.around ? a.n / 2 : a.n - 1); ++r)
            if (a.apart[r] < -LEAST_LANES) flush = std::min(flush, (-margin - a.apart[r]) / r);
        for (long k = 0; k <= BAND; ++k) {
            slope[k] = INFINITY, cap[k] = -INFINITY;
            for (long r = 1; r <= (a.around ? a.n / 2 : a.n - 1); ++r) {
                if (r > k * T) slope[k] = std::min(slope[k], (-margin - a.apart[r]) / r);
                if (r > (k - 1) * T) cap[k] = std::max(cap[k], a.apart[r]);
            }
            if (a.around && (a.n % T || a.tiles <= 2 * k)) slope[k] = -INFINITY;
        }
    }

    // At every turn: a guess from another turn's lines would make the last bit depend on which thread did them.
    void begin() {
        for (long i = 0; i < a.tiles; ++i) from[i] = std::max(0L, i - 1), to[i] = std::min(a.tiles, i + 2);
    }

    // The outputs of tile I on the lines of mask. Returns the lines whose sums may lack terms, unless it marked them.
    [[gnu::noinline]] unsigned outputs(Columns& b, long i, unsigned mask, bool mark) {
        const double *near = a.near + i * a.tiles, *gn = a.group_near + i * a.groups, *gf = a.group_far + i * a.groups;
        int32_t* where = a.where + i * a.tiles;
        double* y = b.y.data();
        Row low(-DBL_MAX);  // below every output of I; not -inf, which -inf would reach
        auto matters = [&](const double* top, double shift) { return reaches(Row(top) + shift, low + -margin) & mask; };
        int count = 0;
        auto take = [&](long j) {
            const int32_t p = __atomic_load_n(where + j, __ATOMIC_RELAXED);
            if (p < 0) return false;
            const double* k_ij = a.blocks + long(p) * BLOCK;
            const Row m(&b.top[j * W]);
            (m + k_ij[NEAR]).store(&t_top[count * W]);
            low = larger(low, larger(m + k_ij[FAR], Row(k_ij[DIAGONAL]) - Row(&b.fall[j * W])));
            tile[count] = int(j);
            block[count++] = k_ij;
            return true;
        };
        long begin = from[i], end = begin;  // what the last lines needed spares branches; then, do others matter?
        while (end < to[i] && take(end)) ++end;
        Row rest(-INFINITY);
        bool lacks = false;
        for (long g = 0; g < a.groups; ++g) {
            const Row top(&b.group_top[g * W]);
            low = larger(low, top + gf[g]);
            if (g * GROUP < end && begin < (g + 1) * GROUP)
                for (long j = g * GROUP; j < std::min(a.tiles, (g + 1) * GROUP); ++j)
                    rest = j >= begin && j < end ? rest : larger(rest, Row(&b.top[j * W]) + near[j]);
            else
                rest = larger(rest, top + gn[g]);
        }
        const unsigned more = reaches(rest, low + -margin) & mask;
        for (long g = 0; more && g < a.groups; ++g)
            if (matters(&b.group_top[g * W], gn[g]))
                for (long j = g * GROUP; j < std::min(a.tiles, (g + 1) * GROUP); ++j)
                    if ((j < begin || j >= end) && matters(&b.top[j * W], near[j]) && !take(j)) {
                        lacks = true;
                        if (!a.last) __atomic_store_n(where + j, WANTED, __ATOMIC_RELAXED);
                    }
        if (lacks) {
            missing |= !a.last;
            if (mark) fill(y, mask, INFINITY);
            return mark ? 0 : mask;
        }
        Row s;
        int best, votes, kept = 0;  // best: the tile that has s on most lines
        unsigned filled;
        auto vote = [&] {
            s = Row(-DBL_MAX);
            best = 0, votes = -1, filled = 0;
            for (int c = 0; c < count; ++c) s = larger(s, Row(&t_top[c * W]));
            for (int c = 0; c < count; ++c) {
                const unsigned has = reaches(Row(&t_top[c * W]), s) & mask;
                const int v = __builtin_popcount(has);
                best = v > votes ? c : best, votes = std::max(v, votes);
                filled |= has;
            }
        };
        vote();
        const bool calm = !(mask & ~reaches(low, s + -SPREAD));
        const bool lanes = std::is_same_v<P, Single> && !(mask & ~reaches(low, s + -SPREAD_LANES));
        if (!calm) {
            for (int c = 0; c < count; ++c) {
                const double* x = &b.x[tile[c] * long(T * W)];
                double* v = &t[c * T * W];
                Row m(-INFINITY);
                for (int k = 0; k < T; ++k) {
                    const Row r = Row(x + k * W) + block[c][REF + k];
                    r.store(v + k * W);
                    m = larger(m, r);
                }
                m.store(&t_top[c * W]);
                low = larger(low, m + block[c][LOW_ALL]);
            }
            vote();
        }
        Nodes a_i(calm ? 0.0 : -DBL_MAX);
        if (count) {  // out_i is at least the largest of `best`, and knows how steep b is
            const Nodes own(block[best] + LOW);
            const Row own_top(&t_top[best * W]);
            from[i] = a.tiles, to[i] = 0;
            for (int c = 0; c < count; ++c) {
                const Nodes above(block[c] + TOP);
                const Row top(&t_top[c * W]);
                const Row bound = calm ? low + -margin
                                       : larger(own_top + -(margin + most(above - own)),
                                                low + -(margin + block[c][TOP_ALL]));
                if (!(reaches(top, bound) & mask)) continue;
                if (calm) {
                    const Row g = exp_of<P>(top - s);
                    lanes ? scale(b.calm<P, float>(tile[c]), narrow(g), c) : scale(b.calm<P, double>(tile[c]), g, c);
                } else {
                    a_i = larger(a_i, above);
                }
                from[i] = std::min(from[i], long(tile[c])), to[i] = std::max(to[i], tile[c] + 1L);
                tile[kept++] = c;
            }
            if (to[i] - from[i] > 2 * kept) from[i] = to[i] = 0;  // too sparse for a guess
        }
        for (int m = 0; m < kept; ++m) {
            const double* k_ij = block[tile[m]];
            block[m] = lanes ? k_ij + Q_LANES : calm ? k_ij + Q : &factor[m * T * T];
            term[m] = &t[tile[m] * T * W];
            if (calm) continue;
            double* e = &t[tile[m] * T * W];
            const Nodes f = exp_of<P>(Nodes(k_ij + TOP) - a_i);
            for (int k = 0; k < T; ++k) (Nodes(k_ij + k * T) * f).store(&factor[(m * T + k) * T]);
#pragma GCC unroll 2
            for (int k = 0; k < T * W; k += W) exp_of<P>(Row(e + k) - s).store(e + k);
        }
        double a_q[T];
        a_i.store(a_q);
        unsigned torn = 0;
        Row sums[T];
        unsigned bad[T] = {};
        if (lanes) {
            Floats found[T];
            products(kept, found);
            for (int q = 0; q < T; ++q) sums[q] = log_of(found[q]);
        } else {
            products(kept, sums);
            for (int q = 0; q < T; ++q) {
                torn |= bad[q] = calm ? 0 : filled & ~reaches(sums[q], Row(TINY));
                sums[q] = larger(sums[q], Row(DBL_MIN));
                for (V& u : sums[q].v) u = log_of<P>(u);
            }
        }
        for (int q = 0; q < T; ++q, y += W) {
            Row out = s;
            for (int h = 0; h < W / L; ++h) out.v[h] += sums[q].v[h] + a_q[q];
            if ((filled & ~bad[q]) == ALL) out.store(y);
            else
                for (int l = 0; l < W; ++l)
                    if (mask >> l & 1)
                        y[l] = !(filled >> l & 1) ? -INFINITY : (bad[q] >> l & 1) ? INFINITY : out.v[l / L][l % L];
        }
        wrong |= mark && torn;
        return mark ? 0 : torn;
    }

    template <class X>
    void scale(const X* e, const Vector<X, W>& g, int c) {
        X* to = (X*)&t[c * T * W];
        for (int k = 0; k < T * W; k += W) (Vector<X, W>(e + k) * g).store(to + k);
    }

    template <class X>  // doubles, or floats; by: what the lines of some of the tiles are still to be multiplied by
    void products(int kept, Vector<X, W>* sums, const Vector<X, W>* by = nullptr, int but = -1) {
        constexpr int SOME = SUMS * sizeof(double) / sizeof(X) < T ? SUMS * sizeof(double) / sizeof(X) : T;
        for (int first = 0; first < T; first += SOME) {
            Vector<X, W> sum[SOME];
            for (auto& r : sum) r = Vector<X, W>(X(0));
            for (int m = 0; m < kept; ++m) {
                const X *r = (const X*)block[m] + first, *e = (const X*)term[m];
                auto add = [&](auto scaled) {
                    for (int k = 0; k < T; ++k) {
                        Vector<X, W> e_k(e + k * W);
                        if constexpr (scaled) e_k = e_k * by[m];
#pragma GCC unroll 8
                        for (int q = 0; q < SOME; ++q)
                            for (int h = 0; h < Vector<X, W>::COUNT; ++h) sum[q].v[h] += r[k * T + q] * e_k.v[h];
                    }
                };
                if (by && m != but) add(std::true_type());
                else add(std::false_type());
            }
            for (int q = 0; q < SOME; ++q) sums[first + q] = sum[q];
        }
    }

    void fill(double* y, unsigned mask, double value) {
        wrong |= value == INFINITY;
        for (int q = 0; q < T * W; ++q)
            if (mask >> q % W & 1) y[q] = value;
    }

    // Between nodes r apart b_k - c_ik/eps is at most b_i + r rise + apart_r, and out_i is at least b_i. The largest rise
    // of some tiles tells without a look at any b which of them matter to I, and, with its top for s, whether sums in
    // floats or doubles can lose anything.
    struct Gentle {
        long first, last;  // tiles, from that many before I to that many after
        int bytes;         // a number; 0: not known
    };
    Gentle gentle(const Columns& b, long i) const {
        if (!(std::max(b.steepest[0], b.steepest[1]) <= slope[BAND])) return {0, 0, 0};
        long reach[2];
        double most = 0, steep = 0;
        for (int side = 0; side < 2; ++side) {
            const double* rise = b.rise[side].data();
            double r = rise[i];
            for (long k = 1; k <= BAND; ++k) r = std::max(r, rise[neighbour(side ? i + k : i - k)]);
            reach[side] = r <= slope[1] ? 1 : BAND;
            steep = std::max(steep, r);
            for (long k = 1; k <= reach[side]; ++k) most = std::max(most, k * T * r + cap[k]);
        }
        const double depth = T * std::max({b.rise[0][i], b.rise[1][i], 0.0});
        const bool lanes = std::is_same_v<P, Single> && steep <= flush && depth <= SPREAD_LANES && most <= LEAST_LANES;
        return {reach[0], reach[1], lanes ? 4 : most + depth <= SPREAD ? 8 : 0};
    }
    long neighbour(long j) const { return a.around ? (j + a.tiles) % a.tiles : std::clamp(j, 0L, a.tiles - 1); }

    template <class X, class B>
    void gentle_outputs(Columns& b, long i, const Gentle& from, B* to, long stride) {
        const Row s(&b.top[i * W]);
        Vector<X, W> by[2 * BAND + 1];
        int count = 0, own = 0;
        for (long k = i - from.first; k <= i + from.last; ++k) {
            const long j = neighbour(k);
            if (!a.around && j != k) continue;
            const double* k_ij = a.blocks + long(a.where[i * a.tiles + j]) * BLOCK;
            const X* e = b.calm<P, X>(j);
            block[count] = k_ij + (sizeof(X) == 4 ? Q_LANES : Q);
            term[count] = (const double*)e;
            if (j == i) {
                own = count;
            } else {
                const Row g = exp_of<P>((Row(&b.top[j * W]) - s) + k_ij[NEAR]);
                if constexpr (sizeof(X) == 4) {
                    by[count] = narrow(g);
                } else {
                    term[count] = &t[count * T * W];  // in place: products take these terms four times
                    scale(e, g, count);
                }
            }
            ++count;
        }
        Vector<X, W> found[T];
        products(count, found, sizeof(X) == 4 ? by : nullptr, own);
        for (int q = 0; q < T; ++q) {
            Row out;
            if constexpr (sizeof(X) == 4) out = log_of(found[q]);
            else
                for (int h = 0; h < Row::COUNT; ++h) out.v[h] = log_of<P>(found[q].v[h]);
            put(s + out, to + q * stride);
        }
    }

    // The outputs of tile I into y, or into rows that lie `stride` apart, if any; whether into those.
    template <class B>
    bool lines(Columns& b, long i, B* to, long stride) {
        if (const Gentle from = gentle(b, i); from.bytes) {
            auto fill = [&](auto* rows, long apart) {
                from.bytes == 4 ? gentle_outputs<float>(b, i, from, rows, apart)
                                : gentle_outputs<double>(b, i, from, rows, apart);
            };
            to ? fill(to, stride) : fill(b.y.data(), W);
            return to;
        }
        const unsigned torn = outputs(b, i, b.good, false);
        for (int l = 0; l < W && !missing; ++l)
            if (torn >> l & 1) outputs(b, i, 1u << l, true);
        if (b.good != ALL) fill(b.y.data(), ALL & ~b.good, NAN);
        return false;
    }
};

typedef double D4 __attribute__((vector_size(32), aligned(8), may_alias));
typedef int64_t M4 __attribute__((vector_size(32)));
inline D4 four(const double* p) { return *(const D4*)p; }
inline void four(double* p, const D4& x) { *(D4*)p = x; }
#ifdef __AVX2__
inline D4 four(const float* p) { return (D4)_mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline void four(float* p, const D4& x) { _mm_storeu_ps(p, _mm256_cvtpd_ps((__m256d)x)); }
#else
inline D4 four(const float* p) { return D4{p[0], p[1], p[2], p[3]}; }
inline void four(float* p, const D4& x) { for (int l = 0; l < 4; ++l) p[l] = float(x[l]); }
#endif
// Four entries from each of four places, to[i][l] = from[l][i].
template <class A, class B, class F, class G>
inline void turned(F from, G to) {
    const D4 r0 = four((const A*)from(0)), r1 = four((const A*)from(1)), r2 = four((const A*)from(2)),
             r3 = four((const A*)from(3));
    const M4 even{0, 4, 2, 6}, odd{1, 5, 3, 7}, first{0, 1, 4, 5}, last{2, 3, 6, 7};
    const D4 a = __builtin_shuffle(r0, r1, even), b = __builtin_shuffle(r0, r1, odd);
    const D4 c = __builtin_shuffle(r2, r3, even), d = __builtin_shuffle(r2, r3, odd);
    four((B*)to(0), __builtin_shuffle(a, c, first)), four((B*)to(1), __builtin_shuffle(b, d, first));
    four((B*)to(2), __builtin_shuffle(a, c, last)), four((B*)to(3), __builtin_shuffle(b, d, last));
}

// Moves the nodes from j to end of the W lines that begin at the places `line` of an array into rows of W, or back.
template <class A, class R>
void rows(A* array, R* row, const long* line, long j, long end, long after) {
    constexpr bool in = std::is_const_v<A>;
    auto move = [](auto& place, auto& of_row) {
        if constexpr (in) of_row = place;
        else place = A(of_row);
    };
    if (line[W - 1] - line[0] == W - 1)
        for (long k = j; k < end; ++k)
            for (int l = 0; l < W; ++l) move(array[line[0] + k * after + l], row[(k - j) * W + l]);
    else if (after == 1 && end - j == T)
        for (int l = 0; l < W; l += 4)
            for (int k = 0; k < T; k += 4) {
                auto of_lines = [&](int i) { return array + line[l + i] + j + k; };
                auto of_rows = [&](int i) { return row + (k + i) * W + l; };
                if constexpr (in) turned<A, R>(of_lines, of_rows);
                else turned<R, A>(of_rows, of_lines);
            }
    else
        for (int l = 0; l < W; ++l)
            for (long k = j; k < end; ++k) move(array[line[l] + k * after], row[(k - j) * W + l]);
}

// Lines a turn: up to 512 bytes of rows that lie far apart, as long as the cache holds them and threads find turns.
long wide(long n, long before, long after) {
    return after < W ? W : W * std::max(1L, std::min({WIDE, 4096 / n, before * after / (TURNS * W)}));
}

template <class P, class A, class B>
struct Turns {  // one thread's, of values of shape (before, n, after)
    const Axis& a;
    const long after, count, width, all;
    Work<P> w;
    std::vector<Columns> columns;
    std::vector<long> line;

    Turns(const Axis& axis, long before, long after)
        : a(axis), after(after), count(before * after), width(wide(a.n, before, after)),
          all((count + width - 1) / width), w(a), columns(width / W, Columns(a)) {}

    [[gnu::flatten]] bool done(const A* in, B* out, long turn) {  // or whether it lacks blocks
        w.begin();
        line.resize(std::min(width, (count - turn * width + W - 1) / W * W));
        for (size_t l = 0; l < line.size(); ++l) {
            const long q = std::min(turn * width + long(l), count - 1);  // beyond the last: copies of it
            line[l] = q / after * a.n * after + q % after;
        }
        auto tiles = [&](auto each) { for (long j = 0; j < a.n; j += T) each(j, std::min(a.n, j + T)); };
        const long some = line.size() / W;
        tiles([&](long j, long end) {
            for (long c = 0; c < some; ++c) rows(in, &columns[c].x[j * W], &line[c * W], j, end, after);
        });
        for (long c = 0; c < some; ++c) columns[c].tops(a);
        tiles([&](long j, long end) {
            const long next = ((turn + 1) * a.n + j) * W;  // the next lines, where they follow in memory
            if (after < W && (turn + 2) * width <= count)
                for (long k = next; k < next + T * W; k += 64 / sizeof(A))
                    __builtin_prefetch(in + k), __builtin_prefetch(out + k, 1);
            bool kept[WIDE];
            for (long c = 0; c < some; ++c) {
                const long* at = &line[c * W];
                const bool together = at[W - 1] - at[0] == W - 1 && end - j == T;
                kept[c] = !w.lines(columns[c], j / T, together ? out + at[0] + j * after : nullptr, after);
            }
            for (long c = 0; c < some && !w.missing; ++c)
                if (kept[c]) rows(out, (const double*)columns[c].y.data(), &line[c * W], j, end, after);
        });
        return !std::exchange(w.missing, false);
    }

    bool done(const A* in, B* out) {  // all turns, without a mark
        bool well = true;
        for (long turn = 0; turn < all; ++turn) well &= done(in, out, turn);
        return well & !std::exchange(w.wrong, false);
    }
};

// What makes nodes [from, to) of the input, just before they are read; they are share number `share` of all.
struct Feed {
    void (*make)(const void* what, long share, long from, long to);
    const void* what;
};

template <class P, class A, class B>
void spread(const Axis* a, const void* in, void* out, long before, long after, uint8_t* done, long threads,
            long* result, const Feed* feed) {
    std::atomic<long> next{0}, missing{0}, wrong{0};
    auto work = [&] {
        Turns<P, A, B> t(*a, before, after);
        for (long turn; (turn = next++) < t.all;) {
            const long from = turn * t.width, to = std::min(t.count, from + t.width);
            if (feed) feed->make(feed->what, turn, from * a->n, to * a->n);
            if (!done[turn]) missing += !(done[turn] = t.done((const A*)in, (B*)out, turn));
        }
        wrong += t.w.wrong;
    };
    on_threads(std::min(threads, before * after / wide(a->n, before, after)), work);
    result[0] = missing, result[1] = wrong;
}

struct Among {  // an axis among those of an array
    const Axis* axis;
    long before, after;
};

// Several axes in turn, on slabs (count, size) of an array, each in the cache until it is done. done: a byte a slab.
template <class P, class A>
void slabs(const Among* axes, long some, const A* in, double* out, long size, long count, uint8_t* done, long threads,
           const Feed* feed) {
    std::atomic<long> next{0};
    auto work = [&] {
        Doubles spare(size);
        Turns<P, A, double> first(*axes[0].axis, axes[0].before, axes[0].after);
        std::vector<Turns<P, double, double>> others;
        others.reserve(some - 1);
        for (long k = 1; k < some; ++k) others.emplace_back(*axes[k].axis, axes[k].before, axes[k].after);
        for (long s; (s = next++) < count;) {
            double *to = out + s * size, *from = spare.data();  // back and forth, so that the last writes into out
            if (some % 2 == 0) std::swap(to, from);
            if (feed) feed->make(feed->what, s, s * size, (s + 1) * size);
            bool well = first.done(in + s * size, to);
            for (auto& t : others) std::swap(to, from), well &= t.done(from, to);
            done[s] = well;
        }
    };
    on_threads(std::min(threads, count), work);
}

// One axis of a whole array. Whether it lacks no blocks and has no marks; marked: whether it has marks alone.
template <class P, class A, class B>
bool all_lines(const Among& a, const A* in, B* out, long threads, long* marked, const Feed* feed = nullptr) {
    std::vector<uint8_t> done((a.before * a.after + W - 1) / W);
    long result[2];
    spread<P, A, B>(a.axis, in, out, a.before, a.after, done.data(), threads, result, feed);
    *marked = !result[0] && result[1];
    return !result[0] && !result[1];
}

template <class P, class A>
long in_turn(const Among* axes, long some, const A* in, double* between, A* out, long size, long count, uint8_t* done,
             long threads, const Feed* feed, long* marked) {
    *marked = 0;
    if (some == 1) {
        const Among& only = axes[0];
        if (in != out) return all_lines<P>(only, in, out, threads, marked, feed);
        const long lines = only.before * only.after, width = wide(only.axis->n, only.before, only.after), n = only.axis->n;
        for (long from = 0; feed && from < lines; from += width)
            feed->make(feed->what, from / width, from * n, std::min(lines, from + width) * n);
        std::copy(in, in + lines * n, between);
        return all_lines<P>(only, between, out, threads, marked);
    }
    if (some == 2) {
        std::fill(done, done + count, all_lines<P>(axes[0], in, between, threads, marked, feed));
    } else {
        slabs<P>(axes, some - 1, in, between, size, count, done, threads, feed);
    }
    if (std::count(done, done + count, 0)) return 0;
    return some - 1 + all_lines<P>(axes[some - 1], between, out, threads, marked);
}

}  // namespace

// Values of shape (before, n, after). single: the grid is float32, and so are the values that go in, come out or both.
// done: one byte for 16 lines, set where they are; result: how many are not, and whether any output was marked.
extern "C" void bigjko_lines(const Axis* a, const void* in, long in32, void* out, long out32, long single, long before,
                             long after, uint8_t* done, long threads, long* result) {
    auto f = !single ? spread<Double, double, double>
             : in32  ? (out32 ? spread<Single, float, float> : spread<Single, float, double>)
                     : (out32 ? spread<Single, double, float> : spread<Single, double, double>);
    f(a, in, out, before, after, done, threads, result, nullptr);
}

// All axes of an array (count, size), the last first: all but the first into `between`, with more than two axes slab by
// slab in the cache, then the first into `out`. Returns how many are done. done: one byte a slab, 0 where it lacks
// blocks or has marks, and is to be done again axis by axis. feed: makes what goes in, slab by slab, or, with fewer axes,
// 16 lines at a time, which lie one after the other; or null. then: what follows once all is done, or null. marked:
// whether the next axis lacks no more than what its marks ask for. A single axis in place is that of a copy, in `between`.
extern "C" long bigjko_in_turn(const Among* axes, long some, const void* in, double* between, void* out, long single,
                               long size, long count, uint8_t* done, long threads, const Feed* feed, const Feed* then,
                               long* marked) {
    auto call = [&](auto precision, auto x) {
        using A = decltype(x);
        return in_turn<decltype(precision)>(axes, some, (const A*)in, between, (A*)out, size, count, done, threads, feed,
                                            marked);
    };
    const long finished = single ? call(Single(), float()) : call(Double(), double());
    if (then && finished == some) then->make(then->what, 0, 0, 0);
    return finished;
}

// bigjko_in_turn twice, the second time in place: with what makes b before each, and what follows, or null.
struct Twice {
    long applied;  // how many were done
    const Among* axes;
    long some;
    const void* in;
    double* between;
    void* out;
    long single, size, count;
    uint8_t* done;
    long threads;
    const Feed *first, *second, *then;
    long finished, marked;  // of the one that ended first, what bigjko_in_turn says
};
extern "C" void bigjko_twice(Twice* t, long, long, long) {
    for (t->applied = 0; t->applied < 2; ++t->applied) {
        const bool last = t->applied;
        const void* from = last ? t->out : t->in;
        t->finished =
            bigjko_in_turn(t->axes, t->some, from, t->between, t->out, t->single, t->size, t->count, t->done, t->threads,
                           last ? t->second : t->first, last ? t->then : nullptr, &t->marked);
        if (t->finished < t->some) return;
    }
}
