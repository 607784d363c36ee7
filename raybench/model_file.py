"""An unlearned model as one safetensors file that says what it is, and the network built from it again."""

from __future__ import annotations

import json
import os
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from raybench.errors import UserError
from raybench.problem import Problem, build_model
from raybench.registry import TRAININGS, load_plugins
from raybench.seeding import canonical, seeded_globals
from raybench.space import resolve
from raybench.spec import STANDARD, Choice, TrialSpec
from raybench.version import __version__
from raybench.weights import without_weights

HEADER = "raybench"  # the key of the header's JSON in the file's metadata


def header_of(problem: Problem, spec: TrialSpec, plugins: tuple[str, ...]) -> dict[str, str]:
    """The metadata that ``load_model`` needs, and where the model comes from."""
    facts, pixels = problem.facts, problem.pixels
    told = {
        "raybench_version": __version__,
        "trial_id": spec.trial_id,
        "method": spec.method,
        "hparams": spec.hparams,
        "dataset": spec.problem.dataset.label,
        "scenario": spec.problem.scenario.label,
        "forget_classes": facts.forget_classes,
        "train_seed": spec.problem.train_seed,
        "unlearn_seed": spec.unlearn_seed,
        "model": {"name": spec.problem.model.name, "options": without_weights(spec.problem.model.options)},
        "training": {"kind": spec.training.kind, "hparams": spec.training.hparams},
        "num_classes": facts.num_classes,
        "input_shape": facts.input_shape,
        "mean": pixels.mean.flatten().tolist(),
        "std": pixels.std.flatten().tolist(),
        "plugins": plugins,
    }
    return {HEADER: json.dumps(canonical(told), sort_keys=True)}


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The network of a file that ``raybench export`` wrote, with its weights, on the CPU in evaluation mode.

    Its attribute ``raybench`` is a dict of what the file says of it. Images [n, C, H, W] go in as
    ``(pixels - mean) / std`` with pixels in [0, 1] and ``mean`` and ``std`` (per channel) of that dict; logits [n, K]
    come out.

    Raises:
        raybench.errors.UserError: no such file, not a file of raybench, or weights that do not fit the network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"a model must be a safetensors file, got {os.fspath(path)} ({error}); check the path"
        ) from error
    if HEADER not in metadata:
        raise UserError(
            f"a model must be a file that raybench export wrote, got {os.fspath(path)} without its header; "
            "export it again"
        )
    told: dict[str, Any] = json.loads(metadata[HEADER])
    load_plugins(tuple(told["plugins"]))
    choice, shape = Choice(**told["model"]), tuple(told["input_shape"])
    kind = told["training"]["kind"]

    def build() -> nn.Module:
        return build_model(choice, told["num_classes"], (shape[0], shape[1], shape[2]))

    with seeded_globals(0):
        own = TRAININGS[kind] if kind != STANDARD else None
        if own is not None and own.network is not None:
            hparams: Any = resolve(own.hparams, told["training"]["hparams"], kind)
            networks: list[nn.Module] = [own.network(build, hparams), build()]
        else:
            networks = [build()]
    for model in networks:  # a method may return the plain network where the original was another one
        if {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in state.items()}:
            model.load_state_dict(state)
            model.raybench = told  # type: ignore[assignment]
            return model.eval()
    raise UserError(
        f"the weights in {os.fspath(path)} must fit the model {choice.label}, they do not: "
        f"{told['method']} returned another network; build it yourself and load the state"
    )
