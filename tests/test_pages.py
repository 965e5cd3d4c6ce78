"""Memory that is used again, and only once nobody holds it."""

import pickle

import torch

import bigjko as bj
from bigjko_kernels.pages import Pool

LARGE = torch.zeros(1 << 17, 2, dtype=torch.float64)


def test_an_array_is_used_again_once_nothing_holds_it() -> None:
    pool = Pool()
    first = pool.empty_like(LARGE).fill_(1.0)
    assert (first.shape, first.dtype) == (LARGE.shape, LARGE.dtype)
    place, view = first.data_ptr(), first[3:]
    second = pool.empty_like(LARGE)
    assert second.data_ptr() != place
    del first
    assert pool.empty_like(LARGE).data_ptr() != place  # a view is left
    del view
    assert pool.empty_like(LARGE).data_ptr() == place


def test_other_sizes_and_small_ones_are_new() -> None:
    pool = Pool()
    pool.empty_like(LARGE)
    assert pool.empty_like(LARGE.float()).dtype == torch.float32  # and what did not fit is gone
    assert [x.dtype for x in pool._idle] == [torch.float32]
    held = [pool.empty_like(LARGE) for _ in range(9)]
    del held
    assert 0 < len(pool._idle) < 9
    assert pool.empty_like(LARGE[:5]).shape == (5, 2)
    assert not pickle.loads(pickle.dumps(pool))._idle


def test_steps_of_one_stepper_leave_each_other_alone() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [400, 400])
    jko = bj.JKO(bj.Potential(lambda x: x[:, 0] ** 2), grid, tau=0.05, idle=0.0)
    start = bj.GridMeasure.gaussian(grid, mean=0.5, std=0.7)
    steps, kept = [jko.step(start, jko.init(start), 0.05)], []
    for _ in range(5):
        kept.append([x.clone() for x in (steps[-1].measure.log_masses, steps[-1].measure.masses, steps[-1].state.d)])
        steps.append(jko.step(steps[-1].measure, steps[-1].state, 0.05))
    for step, before in zip(steps, kept, strict=False):
        assert all(map(torch.equal, (step.measure.log_masses, step.measure.masses, step.state.d), before))
    again = steps[2]
    del steps, step
    last = jko.step(again.measure, again.state, 0.05)  # in the memory of some that are gone
    assert all(map(torch.equal, (last.measure.log_masses, last.measure.masses, last.state.d), kept[3]))
