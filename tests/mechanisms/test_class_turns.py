"""Groups of one class that take turns."""

from __future__ import annotations

import torch

from raybench.mechanisms.class_turns import class_turns


def test_groups_are_of_one_class_and_classes_take_turns() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0, 2])
    groups = class_turns(labels, 2)
    assert [labels[group].tolist() for group in groups] == [[0, 0], [1, 1], [2], [1]]
    assert sorted(torch.cat(groups).tolist()) == list(range(6))
