"""A flow: what was recorded while a stepper went down an energy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from bigjko_kernels.html import curve, table

from .errors import StepError
from .measure import GridMeasure, ParticleMeasure
from .neurons.base import Neurons
from .status import Status

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray


@dataclass(frozen=True, eq=False)
class Flow:
    """The record of one flow. Tensors of the record are float64, on the CPU.

    Attributes:
        name: of the stepper.
        neurons: the way to use a measure, None for energies that are no network's.
        times: (T,) physical times, from 0.
        outputs: (T, n) of the network, in units of y.
        risks: (T,) weight decay included.
        masses: (T,) total masses.
        stats: (T,) numbers of each recorded step, NaN at time 0.
        status: how it ended.
        saved_times: (S,) times of the saved measures.
        measures: those measures, each with its own grid; a flow that was loaded, or written as it went, reads them
            when they are asked for.
    """

    name: str
    neurons: Neurons | None
    times: Float[Tensor, " T"]
    outputs: Float[Tensor, "T n"]
    risks: Float[Tensor, " T"]
    masses: Float[Tensor, " T"]
    stats: dict[str, Float[Tensor, " T"]]
    status: Status
    saved_times: Float[Tensor, " S"]
    measures: Sequence[GridMeasure | ParticleMeasure]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> GridMeasure | ParticleMeasure:
        """The last saved measure.

        Raises:
            StepError: for a flow that keeps none, as an extrapolated one.
        """
        if not self.measures:
            raise StepError(f"received a flow without measures ({self.name}), need one that kept some: save_at")
        return self.measures[-1]

    def to_xarray(self) -> "xarray.Dataset":
        """The record as a Dataset with named dimensions, coordinates and units."""
        from .store.zarr import to_xarray

        return to_xarray(self)

    def save(self, path: str | Path) -> None:
        """Write record and measures to a zarr store that does not exist yet."""
        from .store.zarr import save

        save(self, path)

    @staticmethod
    def load(path: str | Path) -> "Flow":
        """Read a store that `save` wrote."""
        from .store.zarr import load

        return load(path)

    def plot(self) -> "matplotlib.figure.Figure":
        """Risk, the outputs that change the most, and what the steps say of themselves, over time."""
        from .show.plots import plot_flow

        return plot_flow(self)

    def animate(
        self,
        path: str | Path,
        other: "Flow | None" = None,
        *,
        X: Float[Tensor, "n d"] | None = None,
        fps: float = 5.0,
    ) -> None:
        """Write the saved measures as a moving picture, one frame a measure, 100 at most.

        Args:
            path: of the file: .gif, or .mp4 where ffmpeg is installed.
            other: a reference, drawn beside the flow at times at which both kept a measure.
            X: data whose kinks w . x = 0 are drawn on directions, where they are few.
            fps: frames a second.

        Raises:
            StepError: for fewer than two measures, no common time, another ending, or .mp4 without ffmpeg.
        """
        from .show.pictures import animate

        animate(self, path, other, X=X, fps=fps)

    def __repr__(self) -> str:
        return (
            f"Flow({self.name}, {self.status.name}, t = 0 to {float(self.times[-1]):.4g} in {len(self.times) - 1} "
            f"records, risk {float(self.risks[0]):.4g} -> {float(self.risks[-1]):.4g})"
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("way", "none" if self.neurons is None else repr(self.neurons)),
            ("status", self.status.name if self.status is Status.ok else f"{self.status.name}: {self.status.value}"),
            ("times", f"0 to {float(self.times[-1]):.4g} in {len(self.times) - 1:,} records"),
            ("risk", f"{float(self.risks[0]):.4g} → {float(self.risks[-1]):.4g}"),
            ("mass", f"{float(self.masses[0]):.6g} → {float(self.masses[-1]):.6g}"),
            ("outputs", f"{self.outputs.shape[1]:,} of the network"),
            ("measures kept", f"{len(self.measures)}"),
        ]
        about = {"boundary_mass": "largest share at the edge", "evaluations": "evaluations a step"}
        for name, label in about.items():
            known = self.stats.get(name, self.times[:0])
            known = known[known.isfinite()]
            if len(known):
                shown = float(known.max()) if name == "boundary_mass" else float(known.mean())
                rows.append((label, f"{shown:.3g}"))
        for name, value in self.attributes.items():
            if isinstance(value, str | int | float):
                rows.append((name, f"{value:.4g}" if isinstance(value, float) else value))
        return table(f"Flow: {self.name}", rows, curve(self.times.tolist(), self.risks.tolist(), "risk"))
