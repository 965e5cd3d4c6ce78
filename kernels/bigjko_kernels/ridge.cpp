// Sums over directions w_i and data x_j of relu(a_ij), a_ij = w_i . x_j, a vector of data and Q directions at a time:
//
//     outputs_j = sum_i v_i relu(a_ij),   heights_i = sum_j z_j relu(a_ij),   slopes_i = sum_j 1{a_ij > 0} z_j x_j
//
// and a step of gradient descent, where each neuron's slopes move it and its new output is added at once. All in
// double; numbers in float are converted as they are met. Data are filled up with zeros to whole vectors: there
// gate * 0 = 0, whatever the direction, outputs are not read, and only heights need a mask (relu(inf * 0) is NaN).
//
// Directions go in chunks, each with outputs of its own that are added in order: threads do not change a bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int Q = 8;          // directions that share what is loaded of the data
constexpr long TILE = 256;    // data whose gates are kept at a time
constexpr long LEAST = 256;   // directions a chunk, or more where
constexpr long MOST = 64;     // there would be more chunks than this: their outputs take MOST n numbers

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

inline V load(const double* p) { return *(const V*)p; }
inline V relu(V a) { return larger(V{}, a); }  // in this order NaN stays NaN
inline V gate(V a) { return (V)((M)(a > 0) & (M)all(1)); }  // a factor: 0 times NaN is NaN, as in a matrix product
inline double total(V a) {
    for (int h = L / 2; h; h /= 2)
        for (int l = 0; l < h; ++l) a[l] += a[l + h];
    return a[0];
}

struct Data {
    long n, dim, padded;
    const double *x, *z, *zx;  // (dim, padded), (padded) and z x (dim, padded)
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
            V a[q], sum = load(out + j);
            act(a, w, j);
            for (int i = 0; i < q; ++i) sum += v[i] * relu(a[i]);
            *(V*)(out + j) = sum;
        }
    }

    template <int q>
    void heights(const double* w, double* out) const {
        V a[q], sum[q] = {};
        long j = 0;
        for (; j + L <= data.n; j += L) {
            act(a, w, j);
            for (int i = 0; i < q; ++i) sum[i] += load(data.z + j) * relu(a[i]);
        }
        if (j < data.n) {
            M inside;
            for (int l = 0; l < L; ++l) inside[l] = -(j + l < data.n);
            act(a, w, j);
            for (int i = 0; i < q; ++i) sum[i] += load(data.z + j) * relu((V)((M)a[i] & inside));
        }
        for (int i = 0; i < q; ++i) out[i] = total(sum[i]);
    }

    template <int q>
    void slopes(const double* w, double* out) const {
        if constexpr (DIM) {  // all sums fit the registers, or nearly
            V sum[q][DIM] = {};
            for (long j = 0; j < data.padded; j += L) {
                V a[q];
                act(a, w, j);
                for (int i = 0; i < q; ++i) a[i] = gate(a[i]);
                for (int k = 0; k < DIM; ++k)
                    for (int i = 0; i < q; ++i) sum[i][k] += a[i] * load(data.zx + k * data.padded + j);
            }
            for (int i = 0; i < q; ++i)
                for (int k = 0; k < DIM; ++k) out[i * DIM + k] = total(sum[i][k]);
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
                    V sum[q] = {};
                    const double* zx = data.zx + k * data.padded + first;
                    for (long t = 0; t < count; ++t)
                        for (int i = 0; i < q; ++i) sum[i] += gates[t][i] * load(zx + t * L);
                    for (int i = 0; i < q; ++i) out[i * dim + k] += total(sum[i]);
                }
            }
        }
    }
};

struct Job {
    long count, threads;  // directions
    Rows w;
    Data data;

    long chunk() const { return std::max(LEAST, (count + MOST * Q - 1) / (MOST * Q) * Q); }
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

template <int DIM>
void outputs(const Job& job, const Rows& v, double* out) {
    job.reduce(out, [&](long, long begin, long end, double* part) {
        job.groups(begin, end, [&](long i, auto q, const double* w) {
            double weights[q];
            for (int r = 0; r < q; ++r) weights[r] = v.get(i + r);
            Sums<DIM>{job.data}.template outputs<q>(w, weights, part);
        });
    });
}

template <int DIM>
void heights(const Job& job, const Rows& out) {
    job.spread([&](long, long begin, long end) {
        job.groups(begin, end, [&](long i, auto q, const double* w) {
            double found[q];
            Sums<DIM>{job.data}.template heights<q>(w, found);
            for (int r = 0; r < q; ++r) out.set(i + r, 0, found[r]);
        });
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

#define CHOSEN(f, job) ((job).data.dim == 1 ? f<1> : (job).data.dim == 2 ? f<2> : (job).data.dim == 3 ? f<3> : f<0>)

extern "C" void bigjko_outputs(const Job* job, const Rows* v, double* out) { CHOSEN(outputs, *job)(*job, *v, out); }
extern "C" void bigjko_heights(const Job* job, const Rows* out) { CHOSEN(heights, *job)(*job, *out); }
extern "C" void bigjko_slopes(const Job* job, const Rows* out) { CHOSEN(slopes, *job)(*job, *out); }
extern "C" void bigjko_descend(const Job* job, const Neurons* neurons, double* out, double* fastest) {
    CHOSEN(descend, *job)(*job, *neurons, out, fastest);
}
