"""Every class of every family is in the registry, and the shape checks that tests rely on are switched on."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import jaxtyping
import pytest
import torch

import bigjko
import bigjko_kernels
from bigjko.jko import JKO, Entropy, Scheme, StepSolver
from bigjko.losses import Loss
from bigjko.neurons import Dynamics, Neurons
from bigjko.stepper import Stepper
from bigjko.transport import Transport
from bigjko_kernels import Cost, Factor, Features, GibbsKernel, Grid, Stream

from .registry import COSTS, FACTORS, FEATURES, KERNELS, LOSSES, STEPPERS, STREAMS, WAYS

BUILT = [case.make(0.1)[0] for case in STEPPERS.values()]
STEPS = [stepper for stepper in BUILT if isinstance(stepper, JKO)]
LISTED: dict[type, set[type]] = {
    Stepper: {type(stepper) for stepper in BUILT},
    Entropy: {type(jko.entropy) for jko in STEPS},
    Scheme: {type(jko.scheme) for jko in STEPS},
    StepSolver: {type(jko.solver) for jko in STEPS},
    Transport: {type(jko.transport) for jko in STEPS},
    GibbsKernel: {case.kind for case in KERNELS.values()},
    Factor: {type(case.make()) for case in FACTORS.values()},
    Cost: {case.kind for case in COSTS.values()},
    Loss: {case.kind for case in LOSSES.values()},
    Neurons: {case.kind for case in WAYS.values()},
    Dynamics: {type(case.make().dynamics) for case in WAYS.values()},
    Features: set(FEATURES.values()),
    Stream: set(STREAMS.values()),
}
# No member of a family lives in the top rooms, and importing those draws in every extra.
TOP_ROOMS = {"bigjko.app", "bigjko.show", "bigjko.store", "bigjko.compare"}


def import_all(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(module.name == room or module.name.startswith(f"{room}.") for room in TOP_ROOMS):
            importlib.import_module(module.name)


def final_classes(base: type) -> set[type]:
    """Public subclasses that can be built, from the two packages: tests make subclasses of their own."""
    found: set[type] = set()
    kind: type
    for kind in base.__subclasses__():
        found |= final_classes(kind)
        ours = kind.__module__.split(".")[0] in {"bigjko", "bigjko_kernels"}
        if ours and not kind.__name__.startswith("_") and not inspect.isabstract(kind):
            found.add(kind)
    return found


@pytest.mark.parametrize("base", LISTED, ids=lambda base: base.__name__)
def test_every_class_is_listed(base: type) -> None:
    import_all(bigjko_kernels)
    import_all(bigjko)
    assert final_classes(base) == LISTED[base]


def test_shapes_are_checked_at_every_call() -> None:
    grid = Grid.uniform([0.0], [1.0], [3])
    with pytest.raises(jaxtyping.TypeCheckError):
        bigjko_kernels.Line.at(torch.zeros(2, 2))
    with pytest.raises(jaxtyping.TypeCheckError):
        grid.sum(torch.zeros(3, dtype=torch.long))
