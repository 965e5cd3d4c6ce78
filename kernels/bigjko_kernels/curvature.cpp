// What a quasi-Newton method on R^n does with its n x n matrix: torch's operations take microseconds each where they
// have just run, and tens of them after a kernel, whose arrays have put their code out of the cache.
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

}  // namespace

// x = (B + diag(c))^-1 g by Cholesky's factorisation; returns whether that matrix is positive definite.
extern "C" long bigjko_newton(const double* B, const double* c, const double* g, double* x, long n) {
    const long wide = (n + L - 1) / L * L;  // rows of whole registers; what lies right of the diagonal is not looked at
    std::vector<double> factor(n * wide), column(wide);
    double* const f = factor.data();
    for (long k = 0; k < n; ++k) {
        std::copy(B + k * n, B + k * n + k + 1, f + k * wide);
        f[k * wide + k] += c[k];
    }
    for (long k = 0; k < n; ++k) {
        if (!(f[k * wide + k] > 0)) return 0;  // NaN, too
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
    return 1;
}

// The BFGS update of B, for B move = change, into `out`.
extern "C" void bigjko_learn(const double* B, const double* move, const double* change, double* out, long n,
                             double least) {
    std::vector<double> image(n);
    for (long i = 0; i < n; ++i) image[i] = dot(B + i * n, move, n);
    const double pull = dot(image.data(), move, n), push = dot(change, move, n);
    const double size = std::sqrt(dot(move, move, n) * dot(change, change, n));
    std::copy(B, B + n * n, out);
    for (long i = 0; i < n; ++i) {
        if (pull > 0) add(-image[i] / pull, image.data(), out + i * n, n);
        if (push > least * size) add(change[i] / push, change, out + i * n, n);
    }
}
