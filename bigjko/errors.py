"""Errors of the engine: each says what was received, what is needed and what to do."""


class MeasureError(ValueError):
    """Masses or positions that are no measure."""


class RiskError(ValueError):
    """Data, labels, a loss or an energy that do not fit together."""


class StepError(ValueError):
    """A stepper that cannot be built, or a measure it cannot take."""


class NarrowMeasureWarning(UserWarning):
    """A measure narrower than two nodes: it no longer moves at the right speed (mathematics.md 3, hazard ii)."""


class BoundaryMassWarning(UserWarning):
    """Mass at the edge of the box: the box, and no longer the flow, decides what happens there."""


class OtherVersionsWarning(UserWarning):
    """A flow that goes on with other versions than it was begun with: its last digits may differ."""
