"""Which of its settings a search selects: hand-computed cases of every rule."""

from __future__ import annotations

import pytest

from raybench.rules import Tried, choose


def tried(*values: tuple[float, float] | None) -> list[Tried]:
    return [Tried(i // 4, i % 4, {"lr": float(i)}, v, True, (f"t{i}",)) for i, v in enumerate(values)]


def chosen(rule: str, floor: float, *values: tuple[float, float] | None) -> int:
    return int(choose(tried(*values), rule, floor)[0].point["lr"])


def test_distance_is_the_smallest() -> None:
    assert chosen("distance", 0.0, (0.30, 1.0), (0.10, 9.0), (0.20, 0.1)) == 1


def test_distances_within_the_floor_are_told_apart_by_passes() -> None:
    values = ((0.10, 9.0), (0.12, 3.0), (0.13, 2.0), (0.16, 1.0))
    assert chosen("distance", 0.0, *values) == 0
    assert chosen("distance", 0.02, *values) == 1
    assert chosen("distance", 0.03, *values) == 2
    assert chosen("distance", 0.10, *values) == 3


def test_equal_settings_go_by_distance_then_by_index() -> None:
    assert chosen("distance", 0.1, (0.12, 1.0), (0.11, 1.0), (0.11, 1.0)) == 1


def test_unusable_settings_are_passed_over() -> None:
    assert chosen("distance", 0.0, None, (0.9, 1.0), None) == 1
    assert chosen("knee", 0.0, None, (0.9, 1.0), None) == 1


@pytest.mark.parametrize("rule", ["distance", "knee"])
def test_no_usable_setting_is_said(rule: str) -> None:
    setting, note = choose(tried(None, None), rule, 0.1)
    assert setting.point == {"lr": 0.0}
    assert note == f"{rule} (no setting was usable: the first one stands)"


def test_knee_on_a_front_by_hand() -> None:
    """Front (0, 10), (2, 3), (6, 1), (10, 0): scaled by 10 on both axes, the corners are 1, 0.36, 0.61 and 1 away."""
    assert chosen("knee", 0.0, (0.0, 10.0), (2.0, 3.0), (6.0, 1.0), (10.0, 0.0)) == 1


def test_hopeless_settings_do_not_move_the_knee() -> None:
    """With the axes scaled to the front, (0.3, 2) is 0.41 away and (0.2, 8) 0.73; scaled to a setting at distance
    100, all distances would look alike and the cheapest setting, (0.6, 1), would win (0.005 against 0.09)."""
    front = ((0.1, 11.0), (0.2, 8.0), (0.3, 2.0), (0.6, 1.0))
    assert chosen("knee", 0.0, *front) == 2
    assert chosen("knee", 0.0, *front, (100.0, 12.0)) == 2


def test_knee_where_all_are_alike() -> None:
    assert chosen("knee", 0.0, (0.5, 1.0), (0.5, 1.0)) == 0


def test_paper_is_the_first_setting_whatever_its_values() -> None:
    assert chosen("paper", 0.0, (0.9, 9.0), (0.1, 1.0)) == 0
    setting, note = choose(tried(None, (0.1, 1.0)), "paper", 0.0)
    assert (setting.index, note) == (0, "paper")
