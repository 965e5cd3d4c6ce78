// A quasi-Newton ascent on R^n: torch's operations take microseconds each where they have just run, and tens of them
// after a kernel, whose arrays have put their code out of the cache.
#include <vector>

#include "arrays.h"

namespace {

double dot(const double* x, const double* y, long n) {
    V total{};
    registers(n, [&](long i, auto left) { total += load(x + i, left) * load(y + i, left); });
    return sum(total);
}

// y += a x
void add(double a, const double* x, double* y, long n) {
    registers(n, [&](long i, auto left) { store(y + i, load(y + i, left) + a * load(x + i, left), left); });
}

// x = (B + diag(c))^-1 g by Cholesky's factorisation; returns whether that matrix is positive definite.
bool newton(const double* B, const double* c, const double* g, double* x, long n) {
    const long wide = (n + L - 1) / L * L;  // rows of whole registers; what lies right of the diagonal is not looked at
    std::vector<double> factor(n * wide), column(wide);
    double* const f = factor.data();
    for (long k = 0; k < n; ++k) {
        std::copy(B + k * n, B + k * n + k + 1, f + k * wide);
        f[k * wide + k] += c[k];
    }
    for (long k = 0; k < n; ++k) {
        if (!(f[k * wide + k] > 0)) return false;  // NaN, too
        const double pivot = f[k * wide + k] = std::sqrt(f[k * wide + k]);
        column[k] = 0;  // columns up to k stay as they are
        for (long i = k + 1; i < n; ++i) column[i] = f[i * wide + k] /= pivot;
        for (long i = k + 1; i < n; ++i) {
            double* const row = f + i * wide;
            for (long j = (k + 1) / L * L; j <= i; j += L) *(V*)(row + j) -= column[i] * load(&column[j]);
        }
    }
    for (long i = 0; i < n; ++i) x[i] = (g[i] - dot(f + i * wide, x, i)) / f[i * wide + i];
    for (long i = n; i-- > 0;) {
        x[i] /= f[i * wide + i];
        add(-x[i], f + i * wide, x, i);
    }
    return true;
}

// The BFGS update of B, for B move = change, into `out`, which may be B.
void learn(const double* B, const double* move, const double* change, double* out, long n, double least) {
    std::vector<double> image(n);
    for (long i = 0; i < n; ++i) image[i] = dot(B + i * n, move, n);
    const double pull = dot(image.data(), move, n), push = dot(change, move, n);
    const double size = std::sqrt(dot(move, move, n) * dot(change, change, n));
    if (out != B) std::copy(B, B + n * n, out);
    for (long i = 0; i < n; ++i) {
        if (pull > 0) add(-image[i] / pull, image.data(), out + i * n, n);
        if (push > least * size) add(change[i] / push, change, out + i * n, n);
    }
}

// g(u) = least + scale |u - centre|^2.
struct Quadratic {
    double scale, least;
    const double* centre;
};

// What an evaluation of the dual at z leaves, each at a fixed place: u = M p, and sums that make its value.
struct Evaluation {
    void (*make)(const void*, long, long, long);
    const void* what;
    const long* applied;  // 2 if it went through
    double* z;
    const double *u, *sums;
    long shares;
    double worth, constant;
};

struct Point {
    std::vector<double> z, u, gradient;
    double value, residual, gap;
};

// See ascent.py.
struct Climb {
    Evaluation at;
    Quadratic g;
    double tau, tolerance, good, far, noise, force, least;
    long n, budget, turns;
    double *B, *point, *pairs;
    double value, residual, gap;
    long evaluations, learned, stale, torn;

    bool arrive(const double* z, Point& found) {
        std::copy(z, z + n, at.z);
        at.make(at.what, 0, 0, 0);
        torn = *at.applied < 2;
        if (torn) return false;
        found.z.assign(z, z + n);
        found.u.assign(at.u, at.u + n);
        found.gradient.resize(n);
        double worst = 0, size = std::max(force, 1e-300), sum = 0, conjugate = -g.least;
        for (long i = 0; i < n; ++i) {
            const double slope = z[i] / (2 * g.scale);
            found.gradient[i] = found.u[i] - (g.centre[i] + slope);
            conjugate += z[i] * (g.centre[i] + slope / 2);
            size = std::max(size, std::abs(z[i]));
            worst = std::max(worst, std::abs(found.gradient[i]));
        }
        for (long k = 0; k < at.shares; ++k) sum += at.sums[k];
        const double whole = dot(found.gradient.data(), found.gradient.data(), n);  // NaN, where max might lose one
        found.value = at.constant + at.worth * sum - tau * conjugate;
        found.gap = tau * g.scale * whole;
        found.residual = whole == whole ? 2 * g.scale * worst / size : NAN;
        return true;
    }

    // The move from a point, into `move`; whether it leads upwards.
    bool moves(const Point& from, double* move) const {
        const std::vector<double> curvature(n, 1 / (2 * g.scale));
        const double* const slope = from.gradient.data();
        return newton(B, curvature.data(), slope, move, n) && dot(move, slope, n) > 0;
    }

    void run() {
        Point now, next;
        std::vector<double> z(at.z, at.z + n), move(n);
        if (!arrive(z.data(), now) || now.value != now.value) return;
        evaluations = 1;
        while (now.residual > tolerance && now.residual <= far && evaluations < budget && learned < turns) {
            if (!(std::abs(now.value) < INFINITY && moves(now, move.data()))) break;
            for (long i = 0; i < n; ++i) z[i] = now.z[i] + move[i];
            stale = 1;  // until its p is that of the point
            if (!arrive(z.data(), next)) break;
            ++evaluations;
            double *const went = pairs + 2 * n * learned, *const change = went + n;
            for (long i = 0; i < n; ++i) {
                went[i] = next.z[i] - now.z[i];
                change[i] = now.u[i] - next.u[i];
            }
            const double first = dot(went, now.gradient.data(), n), last = dot(went, next.gradient.data(), n);
            if (!(first > 0 && last >= -first / 2 && next.value >= now.value - noise * (1 + std::abs(now.value)))) break;
            learn(B, went, change, B, n, least);
            ++learned;
            std::swap(now, next);
            stale = 0;
        }
        value = now.value;
        residual = now.residual;
        gap = now.gap;
        const bool further = residual <= tolerance && residual > good && moves(now, move.data());
        for (const auto* x : {&now.z, &now.u, &now.gradient}) point = std::copy(x->begin(), x->end(), point);
        for (long i = 0; i < n; ++i) point[i] = now.z[i] + (further ? move[i] : 0);
    }
};

}  // namespace

extern "C" long bigjko_newton(const double* B, const double* c, const double* g, double* x, long n) {
    return newton(B, c, g, x, n);
}

extern "C" void bigjko_learn(const double* B, const double* move, const double* change, double* out, long n,
                             double least) {
    learn(B, move, change, out, n, least);
}

extern "C" void bigjko_climb(Climb* climb) { climb->run(); }
