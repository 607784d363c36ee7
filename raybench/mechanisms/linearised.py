"""Training of the linearised network in closed form: which weights a set of samples asks for.

z(w) ~ z(w_o) + J (w - w_o) with J = d z / d w [n K, P] at the trained weights. With weight decay toward the start the
weights that the samples of a set S add are (Golatkar, Achille and Soatto 2020, arXiv:2003.02960)

    w_S = - J_S^T (J_S J_S^T + n lambda I)^{-1} e_S,    e_S = p - onehot(y)   [n K], a sample's K entries in a row

J itself is never kept: the kernel J J^T and products J^T c are all that is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.passes import count_products

COLUMNS = 4096  # of the Jacobian, converted to float64 at once


def kernel(model: nn.Module, images: Tensor, names: Sequence[str]) -> Tensor:
    """J J^T [n K, n K], float64, over the parameters ``names``, in the model's present mode (evaluation).

    Holds n K P entries. One plain backward pass a row: on small networks no slower than ``torch.func``, and counted.
    Cost: one forward and K backward passes a sample, and the product.
    """
    own = dict(model.named_parameters())
    chosen = [own[name] for name in names]
    jacobian = images.new_empty(0)
    with torch.enable_grad():
        for n, image in enumerate(images):
            answers = model(image[None])[0]
            if n == 0:  # filled in place, since stacked rows would be held twice
                jacobian = answers.new_empty(len(images) * len(answers), sum(p.numel() for p in chosen))
            for k, answer in enumerate(answers):
                gradients = torch.autograd.grad(answer, chosen, retain_graph=k + 1 < len(answers))
                jacobian[n * len(answers) + k] = torch.cat([g.flatten() for g in gradients])
    count_products(model, 2.0 * len(jacobian) ** 2 * jacobian.shape[1])
    gram = jacobian.new_zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    for columns in jacobian.split(COLUMNS, dim=1):  # in float64: fp32 sums are off by more than n lambda
        wide = columns.double()
        gram += wide @ wide.T
    return gram


def pullback(model: nn.Module, images: Tensor, coefficients: Tensor, names: Sequence[str]) -> Tensor:
    """J^T c as one vector [P] in the order of ``names``, for c [n K] or [n, K]. Cost: one sample pass a sample."""
    own = dict(model.named_parameters())
    with torch.enable_grad():
        logits = model(images)
        value = (logits * coefficients.view_as(logits).to(logits)).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, [own[name] for name in names])])


def residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """e_S = p - onehot(y) [n, K], float64: the gradient of the cross-entropy at the logits."""
    return logits.double().softmax(1) - F.one_hot(labels, logits.shape[1])


def dual(gram: Tensor, errors: Tensor, samples: int, decay: float) -> Tensor:
    """(J J^T + n lambda I)^{-1} e [n K]; w_S is minus its pullback."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + samples * decay * eye)
    return torch.cholesky_solve(errors.reshape(-1, 1).to(gram), factor)[:, 0]


def trapezium(step: Tensor, error: Tensor) -> float:
    """How many times ``step`` the true way is, judged from the part ``error`` of the trained weights that the
    linearisation misses (the released code's rule): with c = cos(step, error) and the angle theirs,

        norm = |step| + 2 sin(arccos(c) - pi/2) |error| for c < 0, |step| + 2 c |error| otherwise;  norm / |step|
    """
    length, missed = float(step.norm()), float(error.norm())
    if length == 0.0 or missed == 0.0:
        return 1.0
    cosine = max(-1.0, min(1.0, float(torch.dot(step.double(), error.double())) / (length * missed)))
    grown = math.sin(math.acos(cosine) - math.pi / 2) if cosine < 0.0 else cosine
    return (length + 2.0 * grown * missed) / length
