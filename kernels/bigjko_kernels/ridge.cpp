// Sums over directions w_i and data x_j of relu(a_ij), a_ij = w_i . x_j, a vector of data and Q directions at a time:
//
//     outputs_j = sum_i v_i relu(a_ij),   heights_i = sum_j z_j relu(a_ij),   slopes_i = sum_j 1{a_ij > 0} z_j x_j
//
// a step of gradient descent, where each neuron's slopes move it and its new output is added at once, and what a JKO
// step asks of nodes that are directions times the rest: a potential that is added to another, outputs of a measure.
// All in double; numbers in float are converted as they are met. Data are filled up with zeros to whole vectors: there
// gate * 0 = 0, whatever the direction, outputs are not read, and only heights need a mask (relu(inf * 0) is NaN).
//
// Directions go in chunks, each with outputs of its own that are added in order: threads do not change a bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "arrays.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr int Q = 8;              // directions that share what is loaded of the data
constexpr long TILE = 256;        // data whose gates are kept at a time
constexpr long LEAST = 256;       // directions a chunk, or those of so many
constexpr long NODES = 1 << 14;   // nodes; more where
constexpr long MOST = 64;         // there would be more chunks than this: their outputs take MOST n numbers,
constexpr long GRAMS = 8;         // and their Gram matrices GRAMS 2 n^2

struct Rows {  // of numbers, `stride` from one to the next
    void* place;
    long stride, single;
    double get(long i, long k = 0) const {
        const long at = i * stride + k;
        return single ? double(((const float*)place)[at]) : ((const double*)place)[at];
    }
    double set(long i, long k, double x) const {  // what is left of x when it is stored
        const long at = i * stride + k;
        return single ? ((float*)place)[at] = float(x) : ((double*)place)[at] = x;
    }
};

inline V relu(V a) { return larger(V{}, a); }  // in this order NaN stays NaN
inline V gate(V a) { return (V)((M)(a > 0) & (M)all(1)); }  // a factor: 0 times NaN is NaN, as in a matrix product

struct Data {
    long n, dim, padded;
    const double* x;             // (dim, padded)
    std::vector<double> z, zx;   // (padded) and z x (dim, padded), as far as they are wanted

    void weigh(const double* by) {
        z.assign(padded, 0.0);
        std::copy(by, by + n, z.begin());
    }
    void scale() {
        zx.resize(dim * padded);
        for (long k = 0; k < dim; ++k)
            for (long j = 0; j < padded; ++j) zx[k * padded + j] = z[j] * x[k * padded + j];
    }
};

template <int DIM>  // the data's dimension, 0 for any
struct Sums {
    const Data& data;
    const long dim = DIM ? DIM : data.dim;

    template <int q>
    inline void act(V (&a)[q], const double* w, long j) const {
        const double* x = data.x + j;
        for (int i = 0; i < q; ++i) a[i] = w[i * dim] * load(x);
        for (long k = 1; k < dim; ++k)
            for (int i = 0; i < q; ++i) a[i] += w[i * dim + k] * load(x + k * data.padded);
    }

    template <int q>
    void outputs(const double* w, const double* v, double* out) const {
        for (long j = 0; j < data.padded; j += L) {
            V a[q], found = load(out + j);
            act(a, w, j);
            for (int i = 0; i < q; ++i) found += v[i] * relu(a[i]);
            *(V*)(out + j) = found;
        }
    }

    template <int q>
    void heights(const double* w, double* out) const {
        V a[q], found[q] = {};
        long j = 0;
        for (; j + L <= data.n; j += L) {
            act(a, w, j);
            for (int i = 0; i < q; ++i) found[i] += load(&data.z[j]) * relu(a[i]);
        }
        if (j < data.n) {
            M inside;
            for (int l = 0; l < L; ++l) inside[l] = -(j + l < data.n);
            act(a, w, j);
            for (int i = 0; i < q; ++i) found[i] += load(&data.z[j]) * relu((V)((M)a[i] & inside));
        }
        for (int i = 0; i < q; ++i) out[i] = sum(found[i]);
    }

    template <int q>
    void slopes(const double* w, double* out) const {
        if constexpr (DIM) {  // all sums fit the registers, or nearly
            V found[q][DIM] = {};
            for (long j = 0; j < data.padded; j += L) {
                V a[q];
                act(a, w, j);
                for (int i = 0; i < q; ++i) a[i] = gate(a[i]);
                for (int k = 0; k < DIM; ++k)
                    for (int i = 0; i < q; ++i) found[i][k] += a[i] * load(&data.zx[k * data.padded + j]);
            }
            for (int i = 0; i < q; ++i)
                for (int k = 0; k < DIM; ++k) out[i * DIM + k] = sum(found[i][k]);
        } else {
            V gates[TILE / L][q];
            std::fill(out, out + q * dim, 0);
            for (long first = 0; first < data.padded; first += TILE) {
                const long count = std::min(TILE, data.padded - first) / L;
                for (long t = 0; t < count; ++t) {
                    V a[q];
                    act(a, w, first + t * L);
                    for (int i = 0; i < q; ++i) gates[t][i] = gate(a[i]);
                }
                for (long k = 0; k < dim; ++k) {
                    V found[q] = {};
                    const double* zx = &data.zx[k * data.padded + first];
                    for (long t = 0; t < count; ++t)
                        for (int i = 0; i < q; ++i) found[i] += gates[t][i] * load(zx + t * L);
                    for (int i = 0; i < q; ++i) out[i * dim + k] += sum(found[i]);
                }
            }
        }
    }
};

struct Job {
    const long count, nodes, threads;  // directions, and nodes each
    const Rows& w;
    Data data;
    long most = MOST;

    long chunk() const {
        const long least = std::max(1L, std::min(LEAST, NODES / nodes));
        return std::max(least, (count + most * Q - 1) / (most * Q) * Q);
    }
    long chunks() const { return (count + chunk() - 1) / chunk(); }

    // each(which, begin, end) for all chunks, on all threads.
    template <class F>
    void spread(F each) const {
        std::atomic<long> next{0};
        auto work = [&] {
            for (long c; (c = next++) < chunks();) each(c, c * chunk(), std::min(count, (c + 1) * chunk()));
        };
        on_threads(std::min(threads, chunks()), work);
    }

    // each(first, how many, their directions in double) for Q directions at a time and then one by one.
    template <class F>
    void groups(long begin, long end, F each) const {
        std::vector<double> near(Q * data.dim);
        auto copied = [&](long i, int q) {
            for (int r = 0; r < q; ++r)
                for (long k = 0; k < data.dim; ++k) near[r * data.dim + k] = w.get(i + r, k);
            return near.data();
        };
        for (; begin + Q <= end; begin += Q) each(begin, std::integral_constant<int, Q>(), copied(begin, Q));
        for (; begin < end; ++begin) each(begin, std::integral_constant<int, 1>(), copied(begin, 1));
    }

    // each(which, begin, end, outputs) with outputs of each chunk's own, added up in `out`.
    template <class F>
    void reduce(double* out, F each) const {
        std::vector<double> parts(chunks() * data.padded);
        spread([&](long c, long begin, long end) { each(c, begin, end, &parts[c * data.padded]); });
        std::fill(out, out + data.n, 0);
        for (long c = 0; c < chunks(); ++c)
            for (long j = 0; j < data.n; ++j) out[j] += parts[c * data.padded + j];
    }
};

#define CHOSEN(f, dim) ((dim) == 1 ? f<1> : (dim) == 2 ? f<2> : (dim) == 3 ? f<3> : f<0>)

// What a chunk of directions of these weights adds to the outputs, and the heights of a chunk.
template <int DIM>
void outputs(const Job& job, long begin, long end, const double* v, double* out) {
    job.groups(begin, end, [&](long i, auto q, const double* w) {
        Sums<DIM>{job.data}.template outputs<q>(w, v + (i - begin), out);
    });
}
template <int DIM>
void heights(const Job& job, long begin, long end, double* out) {
    job.groups(begin, end, [&](long i, auto q, const double* w) {
        Sums<DIM>{job.data}.template heights<q>(w, out + (i - begin));
    });
}

void outputs(const Job& job, const Rows& v, double* out) {
    job.reduce(out, [&](long, long begin, long end, double* part) {
        std::vector<double> weights(end - begin);
        for (long i = begin; i < end; ++i) weights[i - begin] = v.get(i);
        CHOSEN(outputs, job.data.dim)(job, begin, end, weights.data(), part);
    });
}

void heights(const Job& job, const Rows& out) {
    job.spread([&](long, long begin, long end) {
        std::vector<double> found(end - begin);
        CHOSEN(heights, job.data.dim)(job, begin, end, found.data());
        for (long i = begin; i < end; ++i) out.set(i, 0, found[i - begin]);
    });
}

template <int DIM>
void slopes(const Job& job, const Rows& out) {
    job.spread([&](long, long begin, long end) {
        std::vector<double> found(Q * job.data.dim);
        job.groups(begin, end, [&](long i, auto q, const double* w) {
            Sums<DIM>{job.data}.template slopes<q>(w, found.data());
            for (int r = 0; r < q; ++r)
                for (long k = 0; k < job.data.dim; ++k) out.set(i + r, k, found[r * job.data.dim + k]);
        });
    });
}

// ------------------------------------------------------------------------------------------------------------ networks

// Nodes (outer, directions, inner), on which the network's amplitude is constant along the directions.
struct Network {
    long outer, inner;
    const double* amplitude;  // (outer, inner)
};

// out = scale base + s v + alpha V; no V: zero.
template <class A>
void blend(const A* base, double scale, const A* potential, double alpha, const double* v, double s, A* out, long n) {
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

// out = scale base + alpha (V + amplitude x heights), for some directions. In runs of nodes where amplitude x height is
// s v_i: along the inner nodes, or across the directions if there is one each.
template <class A>
void blend(const Job& job, const Network& net, const A* base, double scale, const A* potential, double alpha, A* out,
           long begin, long end) {
    const long W = job.count, I = net.inner;
    auto run = [&](long at, long n, const double* v, double s) {
        blend(base + at, scale, potential ? potential + at : nullptr, alpha, v, alpha * s, out + at, n);
    };
    std::vector<double> height(end - begin);
    CHOSEN(heights, job.data.dim)(job, begin, end, height.data());
    for (long o = 0; o < net.outer; ++o)
        if (I == 1) run(o * W + begin, end - begin, height.data(), net.amplitude[o]);
        else
            for (long d = begin; d < end; ++d)
                run((o * W + d) * I, I, net.amplitude + o * I, height[d - begin]);
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

// log_p += rest, and the outputs of exp(log_p); NaN where that is no number.
template <class P, class A>
void weigh(const Job& job, const Network& net, A* log_p, const A* rest, double* out) {
    const long W = job.count, I = net.inner;
    job.reduce(out, [&](long, long begin, long end, double* part) {
        std::vector<double> weights(end - begin);
        bool wrong = false;
        for (long o = 0; o < net.outer; ++o) {
            const double* amplitude = net.amplitude + o * I;
            if (I == 1)
                wrong |= moved<P>(log_p + o * W + begin, rest + o * W + begin, end - begin,
                                  [a = amplitude[0], w = weights.data()](long i, auto left, V p) {
                                      store(w + i, load(w + i, left) + a * p, left);
                                  });
            else
                for (long d = begin; d < end; ++d) {
                    V w{};
                    wrong |= moved<P>(log_p + (o * W + d) * I, rest + (o * W + d) * I, I,
                                      [&w, amplitude](long i, auto left, V p) { w += load(amplitude + i, left) * p; });
                    weights[d - begin] += sum(w);
                }
        }
        if (wrong) std::fill(weights.begin(), weights.end(), NAN);
        CHOSEN(outputs, job.data.dim)(job, begin, end, weights.data(), part);
    });
}

// The sum over the nodes of some directions of alpha p, one a direction.
template <class A>
std::vector<double> contracted(const Network& net, const A* p, long W, long begin, long end) {
    std::vector<double> found(end - begin);
    const long I = net.inner;
    for (long o = 0; o < net.outer; ++o) {
        const double* alpha = net.amplitude + o * I;
        if (I == 1) {
            registers(end - begin, [a = *alpha, x = p + o * W + begin, to = found.data()](long i, auto left) {
                store(to + i, load(to + i, left) + a * load(x + i, left), left);
            });
            continue;
        }
        for (long d = begin; d < end; ++d) {
            const A* x = p + (o * W + d) * I;
            V s{};
            registers(I, [&](long i, auto left) { s += load(alpha + i, left) * load(x + i, left); });
            found[d - begin] += sum(s);
        }
    }
    return found;
}

// What some directions add to sum_w moved_w gate gate^T and sum_w grown_w relu relu^T, on and above the diagonal.
template <int DIM>
void gram(const Job& job, long begin, long end, const double* moved, const double* grown, double* gates, double* heights) {
    const long n = job.data.padded;
    std::vector<double> g(Q * n), h(Q * n);
    job.groups(begin, end, [&](long d, auto q, const double* w) {
        for (long j = 0; j < n; j += L) {
            V a[q];
            Sums<DIM>{job.data}.act(a, w, j);
            for (int r = 0; r < q; ++r) store(&g[r * n + j], gate(a[r])), store(&h[r * n + j], relu(a[r]));
        }
        const double *by = moved + (d - begin), *grow = grown + (d - begin);
        for (long i = 0; i < job.data.n; ++i) {
            double s[q], t[q];
            for (int r = 0; r < q; ++r) s[r] = by[r] * g[r * n + i], t[r] = grow[r] * h[r * n + i];
            for (long j = i / L * L; j < n; j += L) {
                V x = load(gates + i * n + j), y = load(heights + i * n + j);
                for (int r = 0; r < q; ++r) x += s[r] * load(&g[r * n + j]), y += t[r] * load(&h[r * n + j]);
                store(gates + i * n + j, x), store(heights + i * n + j, y);
            }
        }
    });
}

// sum_k p_k grad phi_i . grad phi_j, its squared slopes alpha |G|^2 + beta S^2: (n, n).
template <class A>
void gram(const Job& job, const Network& alpha, const Network& beta, const A* p, double* out) {
    const long n = job.data.n, padded = job.data.padded, size = n * padded;
    std::vector<double> parts(job.chunks() * 2 * size);
    job.spread([&](long c, long begin, long end) {
        const auto moved = contracted(alpha, p, job.count, begin, end), grown = contracted(beta, p, job.count, begin, end);
        double* part = &parts[c * 2 * size];
        CHOSEN(gram, job.data.dim)(job, begin, end, moved.data(), grown.data(), part, part + size);
    });
    for (long c = 1; c < job.chunks(); ++c)
        for (long k = 0; k < 2 * size; ++k) parts[k] += parts[c * 2 * size + k];
    for (long i = 0; i < n; ++i)
        for (long j = i; j < n; ++j) {
            double inner = 0;
            for (long k = 0; k < job.data.dim; ++k) inner += job.data.x[k * padded + i] * job.data.x[k * padded + j];
            out[i * n + j] = out[j * n + i] = parts[i * padded + j] * inner + parts[size + i * padded + j];
        }
}

// ----------------------------------------------------------------------------------------------------------- particles

struct Neurons {
    Rows a, masses, moved;  // second layer, masses, and the new (w, a)
    double dt, decay;
};

template <int DIM>
void descend(const Job& job, const Neurons& neurons, double* out, double* fastest) {
    std::vector<double> speeds(job.chunks());
    job.reduce(out, [&](long c, long begin, long end, double* part) {
        const long dim = DIM ? DIM : job.data.dim;
        std::vector<double> slope(Q * dim), at(Q * dim);
        double top = 0;
        job.groups(begin, end, [&](long i, auto q, const double* w) {
            double weights[q];
            Sums<DIM>{job.data}.template slopes<q>(w, slope.data());
            for (int r = 0; r < q; ++r) {
                const double a = neurons.a.get(i + r);
                double height = 0, speed = 0;
                for (long k = 0; k < dim; ++k) {
                    const double w_k = w[r * dim + k], g_k = slope[r * dim + k];
                    const double v_k = -(a * g_k + 2 * neurons.decay * w_k);
                    height += w_k * g_k;
                    speed += v_k * v_k;
                    at[r * dim + k] = neurons.moved.set(i + r, k, w_k + neurons.dt * v_k);
                }
                const double v_a = -(height + 2 * neurons.decay * a);
                speed += v_a * v_a;
                top = speed > top || std::isnan(speed) ? speed : top;  // NaN stays
                weights[r] = neurons.masses.get(i + r) * neurons.moved.set(i + r, dim, a + neurons.dt * v_a);
            }
            Sums<DIM>{job.data}.template outputs<q>(at.data(), weights, part);
        });
        speeds[c] = top;
    });
    double top = 0;
    for (double speed : speeds) top = speed > top || std::isnan(speed) ? speed : top;
    *fastest = std::sqrt(top);
}


}  // namespace

struct Pairs {  // directions and data
    long count;
    Rows w;
    long n, dim, padded;
    const double* x;

    Job job(long threads, const Network* net = nullptr) const {
        return {count, net ? net->outer * net->inner : 1, threads, w, {n, dim, padded, x, {}, {}}};
    }
    Job job(long threads, const double* z, bool scaled, const Network* net = nullptr) const {
        Job job = this->job(threads, net);
        job.data.weigh(z);
        if (scaled) job.data.scale();
        return job;
    }
};

extern "C" void bigjko_outputs(const Pairs* pairs, const Rows* v, double* out, long threads) {
    outputs(pairs->job(threads), *v, out);
}
extern "C" void bigjko_heights(const Pairs* pairs, const double* z, const Rows* out, long threads) {
    heights(pairs->job(threads, z, false), *out);
}
extern "C" void bigjko_slopes(const Pairs* pairs, const double* z, const Rows* out, long threads) {
    CHOSEN(slopes, pairs->dim)(pairs->job(threads, z, true), *out);
}
extern "C" void bigjko_descend(const Pairs* pairs, const double* z, const Neurons* neurons, double* out,
                               double* fastest, long threads) {
    CHOSEN(descend, pairs->dim)(pairs->job(threads, z, true), *neurons, out, fastest);
}
struct Blending {
    const Pairs* pairs;
    const double* z;
    const Network* net;
    const void* base;
    double scale;
    const void* potential;
    double alpha;
    void* out;
    long single;

    Job job(long threads) const { return pairs->job(threads, z, false, net); }
    void some(const Job& job, long begin, long end) const {
        in_dtype(single, [&](auto, auto a) {
            using A = decltype(a);
            blend(job, *net, (const A*)base, scale, (const A*)potential, alpha, (A*)out, begin, end);
        });
    }
};
extern "C" void bigjko_blend(const Blending* all, long threads) {
    const Job job = all->job(threads);
    job.spread([&](long, long begin, long end) { all->some(job, begin, end); });
}
// Nodes [from, to) of whole directions where outer = 1; else all.
extern "C" void bigjko_blend_some(const Blending* all, long, long from, long to) {
    all->some(all->job(1), from / all->net->inner, std::min(to / all->net->inner, all->pairs->count));
}
extern "C" void bigjko_gram(const Pairs* pairs, const Network* alpha, const Network* beta, const void* p, double* out,
                            long single, long threads) {
    in_dtype(single, [&](auto, auto a) {
        Job job = pairs->job(threads, alpha);
        job.most = GRAMS;
        gram(job, *alpha, *beta, (const decltype(a)*)p, out);
    });
}
struct Weighing {
    const Pairs* pairs;
    const Network* net;
    void* log_p;
    const void* rest;
    double* out;
    long single, threads;
};
extern "C" void bigjko_weigh(const Weighing* w, long, long, long) {
    in_dtype(w->single, [&](auto precision, auto a) {
        using A = decltype(a);
        weigh<decltype(precision)>(w->pairs->job(w->threads, w->net), *w->net, (A*)w->log_p, (const A*)w->rest, w->out);
    });
}
