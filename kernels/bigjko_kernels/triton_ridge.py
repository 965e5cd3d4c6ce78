"""Sums over directions and data of relu(w . x) on a GPU, by Triton: what ridge.cpp is on the CPU.

A thread keeps a few directions and goes through the data, or a few data and goes through directions: what it goes
through is read from the cache, and an activation never leaves its register. Past the end of an array comes its last
row again: it is written twice, or has no weight (zeros times data that are not finite would be NaN).

Imported where there is a GPU, or by a test with TRITON_INTERPRET=1: see tritons.py.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .errors import GridError, KernelError
from .streams import Moved, Stream, Tiled
from .tritons import jit

_DTYPES = (torch.float32, torch.float64)
_HIGH = 32  # twice as fast as torch at d = 10, no faster at 40, where registers hardly hold a direction and its slope
_THREADS = 128  # of one program, and its data
_MOST, _NUMBERS = 8, 48  # data that a thread keeps, and their coordinates
_STRIPES, _LEAST = 4, 64  # a multiprocessor takes so many stripes of directions, of so many or more
_MANY = 1 << 17  # directions: with fewer, each has a thread of its own
_OPTIONS = {"enable_fp_fusion": True}  # releases differ in what they take if they are not told
_any_size = functools.partial(jit, do_not_specialize=("N", "n", "stripe"))  # compiled once, whatever their divisors


@jit
def _rows(place, along, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Coordinates of one row, a number each, or of some, an array each."""
    found = tl.tuple(())
    for k in tl.static_range(D):
        found = found + (tl.load(place + k * along).to(tl.float64),)
    return found


@jit
def _across(values, AXIS: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each along the other axis of a matrix."""
    found = tl.tuple(())
    for k in tl.static_range(D):
        found = found + (tl.expand_dims(values[k], AXIS),)
    return found


@jit
def _act(w, x, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """The pre-activations w . x."""
    act = w[0] * x[0]
    for k in tl.static_range(1, D):
        act += w[k] * x[k]
    return act


@jit
def _relu(act):  # type: ignore[no-untyped-def]
    """In this order NaN stays NaN."""
    return tl.where(act <= 0.0, 0.0, act)


@jit
def _gated(  # type: ignore[no-untyped-def]
    w, x, x_row, x_along, z, n, D: tl.constexpr, B: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """sum_j z_j 1{w . x_j > 0} x_j, coordinate by coordinate."""
    total = tl.tuple(())
    for _ in tl.static_range(D):
        total = total + (tl.zeros((B,), tl.float64),)
    for j in tl.range(0, n, loop_unroll_factor=AHEAD):
        datum = _rows(x + j * x_row, x_along, D)
        z_j = tl.load(z + j)
        step = tl.where(_act(w, datum, D) > 0.0, z_j, 0.0 * z_j)  # 0 times NaN is NaN, as in a matrix product
        added = tl.tuple(())
        for k in tl.static_range(D):
            added = added + (total[k] + step * datum[k],)
        total = added
    return total


@_any_size
def _outputs(  # type: ignore[no-untyped-def]
    w, w_row, w_along, weights, weights_row, x, x_row, x_along, out, N, n, stripe,
    D: tl.constexpr, DATA: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """A row of `out` is one stripe's share of the outputs."""
    j = tl.minimum(tl.program_id(0) * DATA + tl.arange(0, DATA), n - 1)
    data = _across(_rows(x + j * x_row, x_along, D), 1, D)
    first = tl.program_id(1).to(tl.int64) * stripe
    last = tl.minimum(first + stripe, N)
    total = tl.zeros((DATA, ROWS), tl.float64)
    for start in tl.range(first, last, ROWS, loop_unroll_factor=AHEAD):
        turn = start + tl.arange(0, ROWS)
        i = tl.minimum(turn, last - 1)
        directions = _across(_rows(w + i * w_row, w_along, D), 0, D)
        weight = tl.where(turn < last, tl.load(weights + i * weights_row).to(tl.float64), 0.0)
        total += weight[None, :] * _relu(_act(directions, data, D))
    tl.store(out + tl.program_id(1).to(tl.int64) * n + j, tl.sum(total, 1))


@_any_size
def _potential(  # type: ignore[no-untyped-def]
    w, w_row, w_along, x, x_row, x_along, z, out, N, n, D: tl.constexpr, B: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Of B directions, see Stream."""
    i = tl.minimum(tl.program_id(0).to(tl.int64) * B + tl.arange(0, B), N - 1)
    directions = _rows(w + i * w_row, w_along, D)
    total = tl.zeros((B,), tl.float64)
    for j in tl.range(0, n, loop_unroll_factor=AHEAD):
        total += tl.load(z + j) * _relu(_act(directions, _rows(x + j * x_row, x_along, D), D))
    tl.store(out + i, total)


@_any_size
def _slopes(  # type: ignore[no-untyped-def]
    w, w_row, w_along, x, x_row, x_along, z, out, N, n, D: tl.constexpr, B: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Of B directions, see Stream."""
    i = tl.minimum(tl.program_id(0).to(tl.int64) * B + tl.arange(0, B), N - 1)
    slopes = _gated(_rows(w + i * w_row, w_along, D), x, x_row, x_along, z, n, D, B, AHEAD)
    for k in tl.static_range(D):
        tl.store(out + i * D + k, slopes[k])


@_any_size
def _step(  # type: ignore[no-untyped-def]
    w, w_row, w_along, a, a_row, masses, masses_row, x, x_row, x_along, z, moved, weights, fastest,
    dt: "fp64", decay: "fp64",  # type: ignore[name-defined]
    N, n, D: tl.constexpr, B: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Positions where neurons go, masses times second layers there, and the largest speed of the program's."""
    i = tl.minimum(tl.program_id(0).to(tl.int64) * B + tl.arange(0, B), N - 1)
    directions = _rows(w + i * w_row, w_along, D)
    second = tl.load(a + i * a_row).to(tl.float64)
    slopes = _gated(directions, x, x_row, x_along, z, n, D, B, AHEAD)
    place = moved + i * (D + 1)
    height = tl.zeros((B,), tl.float64)
    speed = tl.zeros((B,), tl.float64)
    for k in tl.static_range(D):
        down = second * slopes[k] + 2 * decay * directions[k]
        height += directions[k] * slopes[k]
        speed += down * down
        tl.store(place + k, directions[k] - dt * down)
    down = height + 2 * decay * second
    speed += down * down
    # The outputs are those of the positions as they are stored.
    second = (second - dt * down).to(moved.dtype.element_ty)
    tl.store(place + D, second)
    mass = tl.load(masses + i * masses_row).to(tl.float64)
    tl.store(weights + i, mass * second.to(tl.float64))
    bad = tl.sum(tl.where(speed == speed, 0.0, speed), 0)  # NaN, which max passes over, or 0
    tl.store(fastest + tl.program_id(0), tl.sqrt(tl.max(speed, 0)) + bad)


_COMPILED = isinstance(_outputs, triton.JITFunction)  # not interpreted, which would be on the CPU


def _kept(d: int) -> int:
    """Data in a thread's registers, a power of 2."""
    return 1 << max(1, min(_MOST, _NUMBERS // d)).bit_length() - 1


def _constants(d: int) -> dict[str, int]:
    """D, and the turns of a loop whose loads are on their way together."""
    return {"D": d, "AHEAD": max(1, min(4, 24 // d)), **_OPTIONS}


def _strided(rows: Tensor) -> tuple[Tensor, int, int]:
    return rows, rows.stride(0), rows.stride(1)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class TritonStream(Stream):
    """By Triton on a GPU: every activation is used where it is computed, in float64 whatever the dtype.

    Cost N n (d + 2) multiplications, 2 N n d for slopes, 3 N n d for a descent; memory O(N + n). Sums are taken in the
    same order in every run. Data are kept in float64. Sums that need a gradient are left to Tiled.
    """

    @staticmethod
    def takes(directions: Tensor) -> bool:
        """Whether it is the faster way: on a GPU, below d = 32."""
        return directions.device.type == "cuda" and directions.dtype in _DTYPES and directions.shape[1] < _HIGH

    def __init__(self, directions: Float[Tensor, "N d"], X: Float[Tensor, "n d"]) -> None:
        super().__init__(directions, X)
        if directions.dtype not in _DTYPES or (_COMPILED and directions.device.type != "cuda"):
            raise KernelError(
                f"received directions in {directions.dtype} on {directions.device}, need float32 or float64 on a GPU: "
                "use Tiled"
            )
        self._data = X.detach().double()

    def _otherwise(self, *values: Tensor) -> Tiled | None:
        """The sums that are not for a GPU: with a gradient, or over nothing."""
        idle = 0 in (*self.directions.shape, self.X.shape[0])
        return Tiled(self.directions, self.X) if idle or self._tracked(*values) else None

    def _checked(self, values: Tensor, size: int) -> Tensor:
        """One number each: kernels check nothing."""
        if values.shape != (size,) or values.device != self.X.device:
            raise GridError(
                f"received values of shape {tuple(values.shape)} on {values.device}, need ({size},) on {self.X.device}"
            )
        return values if values.dtype in _DTYPES else values.double()

    def _through_data(self, z: Tensor) -> tuple[tuple[int], tuple[Any, ...], tuple[int, int], dict[str, int]]:
        """How a kernel in which threads keep directions is started: grid, data, sizes, constants."""
        (N, d), n = self.directions.shape, self.X.shape[0]
        B = _THREADS * (max(1, _kept(d) // 2) if N >= _MANY else 1)
        data = (*_strided(self._data), self._checked(z, n).double().contiguous())
        return (-(-N // B),), data, (N, n), {"B": B, **_constants(d)}

    def _sum(self, w: Tensor, weights: Tensor) -> Tensor:
        """The outputs of some directions."""
        (N, d), n = w.shape, self.X.shape[0]
        rows = _kept(d)  # at once, side by side in a warp: its threads are rows times groups of so many data
        size = max(_THREADS // rows, min(_THREADS, triton.next_power_of_2(n)))
        blocks = -(-n // size)
        stripe = max(_LEAST, -(-N // max(1, _STRIPES * _multiprocessors(w.device) // blocks)))
        stripes = -(-N // stripe)
        out = torch.empty(stripes, n, dtype=torch.float64, device=w.device)
        with torch.cuda.device_of(w):
            _outputs[blocks, stripes](
                *_strided(w), weights, weights.stride(0), *_strided(self._data), out, N, n, stripe,
                DATA=size, ROWS=rows, **_constants(d),
            )  # fmt: skip
        return out.sum(0)

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        if (tiled := self._otherwise(weights)) is not None:
            return tiled.outputs(weights)
        return self._sum(self.directions, self._checked(weights, self.directions.shape[0]))

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        if (tiled := self._otherwise(z)) is not None:
            return tiled.potential(z)
        grid, data, sizes, constants = self._through_data(z)
        out = self.directions.new_empty(self.directions.shape[0])
        with torch.cuda.device_of(out):
            _potential[grid](*_strided(self.directions), *data, out, *sizes, **constants)
        return out

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        if (tiled := self._otherwise(z)) is not None:
            return tiled.slopes(z)
        grid, data, sizes, constants = self._through_data(z)
        out = self.directions.new_empty(self.directions.shape)
        with torch.cuda.device_of(out):
            _slopes[grid](*_strided(self.directions), *data, out, *sizes, **constants)
        return out

    def descend(self, a: Tensor, masses: Tensor, z: Tensor, dt: float, decay: float) -> Moved:
        """See Stream."""
        if (tiled := self._otherwise(a, masses, z)) is not None:
            return tiled.descend(a, masses, z, dt, decay)
        N, d = self.directions.shape
        a, masses = self._checked(a, N), self._checked(masses, N)
        grid, data, sizes, constants = self._through_data(z)
        moved = self.directions.new_empty(N, d + 1)
        weights, fastest = (torch.empty(k, dtype=torch.float64, device=a.device) for k in (N, *grid))
        with torch.cuda.device_of(a):
            _step[grid](
                *_strided(self.directions), a, a.stride(0), masses, masses.stride(0), *data,
                moved, weights, fastest, dt, decay, *sizes, **constants,
            )  # fmt: skip
        return Moved(moved, self._sum(moved[:, :d], weights), float(fastest.max()))
