"""Dependence by ranks of nearest neighbours, and forward selection of variables with it (FOCI).

The coefficients are those of Azadkia and Chatterjee 2021 (arXiv:1910.12327), as Mehta et al. 2022 (L-FOCI) use them.
``columns`` [n, Q] are candidate variables, ``y`` [n] the response. Distances are squared Euclidean, float32 or float64
as given; a tie between neighbours goes to the first, as it must be the same in every run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rank_counts(y: Tensor) -> tuple[Tensor, Tensor]:
    """R and L, float64 [n]: how many responses are <= and >= each (with no ties R is 1 .. n and L = n + 1 - R)."""
    ordered = torch.sort(y).values
    below = torch.searchsorted(ordered, y, right=True)
    above = len(y) - torch.searchsorted(ordered, y, right=False)
    return below.double(), above.double()


def squared_distances(z: Tensor) -> Tensor:
    """[n, n] between the rows of ``z`` [n] or [n, q], infinite on the diagonal."""
    total = torch.zeros(len(z), len(z), dtype=z.dtype, device=z.device)
    for column in z.reshape(len(z), -1).T:
        total += (column[:, None] - column[None, :]).square()
    return total.fill_diagonal_(math.inf)


def dependence(z: Tensor, y: Tensor) -> float:
    """T(Z -> Y): about 0 where Y does not depend on Z, about 1 where it is a function of it; 0 for a constant Y."""
    return _unconditional(*rank_counts(y), squared_distances(z).argmin(dim=1))


def conditional_dependence(z: Tensor, y: Tensor, x: Tensor) -> float:
    """T(Z -> Y | X): what Z adds where X is known; 0 where X already tells Y."""
    r, _ = rank_counts(y)
    known = squared_distances(x)
    return _conditional(r, (known + squared_distances(z)).argmin(dim=1), known.argmin(dim=1))


def foci(columns: Tensor, y: Tensor, only_first: bool = False) -> tuple[list[int], list[float]]:
    """Forward selection: the column with the largest T, then always the one that adds the most, until none adds.

    Returns the columns in their order, and their coefficients. ``only_first`` stops after one ("cheap" in the code of
    L-CODEC). Cost: one [n, n] table per candidate and round.
    """
    r, above = rank_counts(y)
    candidates = list(range(columns.shape[1]))
    scores = [_unconditional(r, above, squared_distances(columns[:, j]).argmin(dim=1)) for j in candidates]
    best = max(candidates, key=scores.__getitem__)
    chosen, values = [best], [scores[best]]
    known = squared_distances(columns[:, best])
    candidates.remove(best)
    while candidates and not only_first:
        nearest = known.argmin(dim=1)
        scores = [_conditional(r, _nearest_with(known, columns[:, j]), nearest) for j in candidates]
        value = max(scores)
        if not value > 0.0:
            break
        best = candidates.pop(scores.index(value))
        chosen.append(best)
        values.append(value)
        known += (columns[:, best, None] - columns[None, :, best]).square()
    return chosen, values


def _nearest_with(known: Tensor, column: Tensor) -> Tensor:
    """Nearest neighbours once ``column`` is added to the distances ``known``."""
    apart = column[:, None] - column[None, :]
    return torch.addcmul(known, apart, apart).argmin(dim=1)


def _unconditional(r: Tensor, above: Tensor, nearest: Tensor) -> float:
    n = len(r)
    total = float((above * (n - above)).sum())
    found = float((n * torch.minimum(r, r[nearest]) - above.square()).sum())
    return found / total if total > 0.0 else 0.0


def _conditional(r: Tensor, nearest: Tensor, nearest_known: Tensor) -> float:
    known = torch.minimum(r, r[nearest_known])
    total = float((r - known).sum())
    found = float((torch.minimum(r, r[nearest]) - known).sum())
    return found / total if total > 0.0 else 0.0
