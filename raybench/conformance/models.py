"""What every model keeps to: ``raybench.contract``, weights from the seed alone, every parameter in use."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raybench.conformance.rules import Case, NotHere, function_and_key_are_one_word, hold
from raybench.contract import Shape, broken_rules
from raybench.diffusion import STEPS
from raybench.errors import UserError
from raybench.registry import CLASSIFICATION, MODELS
from raybench.seeding import seeded_globals
from raybench.task_kinds import TASK_KINDS

SHAPES: tuple[Shape, ...] = ((1, 28, 28), (3, 32, 32))
CLASSES = 7


def cases(name: str) -> Iterator[Case]:
    """The checks of one model, on grey and on colour images."""
    yield Case(function_and_key_are_one_word, (MODELS[name],))
    contract = keeps_the_contract if MODELS[name].task == CLASSIFICATION else predicts_noise
    for check in (contract, every_parameter_learns, samples_do_not_see_each_other):
        yield from (Case(check, (name, shape)) for shape in SHAPES)
    yield Case(seed_decides_the_weights_and_nothing_else_does, (name,))


def build(name: str, shape: Shape, seed: int = 0) -> nn.Module:
    """A network with the default options; ``NotHere`` where the model does not take such images."""
    with seeded_globals(seed):
        try:
            model: nn.Module = MODELS[name].fn(CLASSES, shape)
        except UserError as error:
            raise NotHere(str(error)) from error
    return model


def noise(shape: Shape, n: int = 4) -> Tensor:
    """Images [n, C, H, W]."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


def keeps_the_contract(name: str, shape: Shape) -> None:
    """Every rule of ``raybench.contract``."""
    rules = broken_rules(build(name, shape), noise(shape), CLASSES)
    hold(not rules, "; ".join(rules))


def predicts_noise(name: str, shape: Shape) -> None:
    """A denoiser gives finite noise of the images' shape at any step, and it depends on the step."""
    model, x = build(name, shape).eval(), noise(shape)
    with torch.no_grad():
        early, late = (model(x, torch.full((len(x),), t)) for t in (0, STEPS - 1))
    hold(early.shape == x.shape, f"the noise must have the shape {list(x.shape)}, has {list(early.shape)}")
    hold(bool(torch.isfinite(early).all() and torch.isfinite(late).all()), "the noise must be finite")
    hold(not torch.equal(early, late), "the step does not matter")


def every_parameter_learns(name: str, shape: Shape) -> None:
    """A gradient that is not zero reaches all of them."""
    model, loss = build(name, shape).train(), TASK_KINDS[MODELS[name].task].loss(torch.Generator().manual_seed(0))
    loss(model, (noise(shape, 8), torch.arange(8) % CLASSES)).mean().backward()
    still = [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    hold(not still, f"no gradient reaches {', '.join(still)}")


def samples_do_not_see_each_other(name: str, shape: Shape) -> None:
    """In evaluation mode; in float64, where sums of another order agree to 1e-7."""
    model, x = build(name, shape).double().eval(), noise(shape).double()
    with torch.no_grad():
        apart = float((model(x)[1:2] - model(x[1:2])).abs().max())
    hold(apart < 1e-7, f"the output of an image moves by {apart:.2g} with the other images of its batch")


def seed_decides_the_weights_and_nothing_else_does(name: str) -> None:
    """Same seed, same weights; another seed, others under the same keys."""
    for shape in SHAPES:
        try:
            make = functools.partial(build, name, shape)
            one, same, other = (make(seed).state_dict() for seed in (1, 1, 2))
        except NotHere:
            continue
        hold(all(torch.equal(one[key], same[key]) for key in one), "two networks of one seed differ")
        hold(list(one) == list(other), "the keys of the state dict depend on the seed")
        differs = any(not torch.equal(one[key], other[key]) for key in one)
        hold(differs, "the seed does not matter; initialise from torch's global generator, which the harness seeds")
        return
    raise NotHere(f"takes images of none of the shapes {SHAPES}")
