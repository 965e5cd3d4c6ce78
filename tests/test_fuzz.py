"""A seeded share of what `python -m tests.fuzz` does."""

from .fuzz import INPUTS, fuzz


def test_readers_give_data_or_one_line_whatever_they_are_given() -> None:
    wrong: list[str] = []
    found = fuzz(800, 0, wrong.append)
    assert wrong == []
    assert {kind for kind, outcome in found if outcome == "read"} == set(INPUTS)
    assert {kind for kind, outcome in found if outcome == "refused"} == set(INPUTS)
