"""Sanity gates: what must hold before a row's numbers mean anything. Each is a function of cached outputs.

A gate answers true, false, or null where it cannot be judged; it asks only what no correct row fails. Lines that fail
one stay in the files and are hidden, unranked and off the front. The docstring of a gate is its entry in
``results/gates.md``.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from raybench.outputs import Outputs, SplitOutputs

COMMAND = "raybench list gates --format markdown > results/gates.md"
PARTS = ("Why", "A failure means", "What to do")
_SPLITS = ("retain", "forget", "validation", "test")


@dataclass(frozen=True)
class Evidence:
    """What a gate sees of a row: outputs of its model, of the original that it started from, and of the retrained.

    ``acts``: the row is of a method that is not declared to change nothing. ``weights_changed``: null for predictors.
    """

    outputs: Outputs
    original: Outputs
    retrained: Outputs
    num_classes: int
    acts: bool = False
    weights_changed: bool | None = None

    @property
    def chance(self) -> float:
        """Skill of guessing: the accuracy among all classes alike, or none without classes."""
        return 1.0 / self.num_classes if self.original["retain"].sample_losses is None else 0.0


Judge = Callable[[Evidence], bool | None]
_GATES: dict[str, Judge] = {}


def gate(judge: Judge) -> Judge:
    """Register a gate under its function's name."""
    _GATES[judge.__name__] = judge
    return judge


def judge_gates(seen: Evidence) -> dict[str, bool | None]:
    """Gate -> whether it holds, null where it cannot be judged."""
    return {name: judge(seen) for name, judge in _GATES.items()}


def skill(split: SplitOutputs) -> float:
    """Share of correct predictions; without classes, of the noise that is explained (1 - mean loss)."""
    if split.sample_losses is not None:
        return 1.0 - float(split.losses.mean())
    return float(split.correct.double().mean())


def beats_guessing(split: SplitOutputs, chance: float) -> bool:
    """Skill more than two standard errors above ``chance``."""
    variance = chance * (1.0 - chance) if split.sample_losses is None else float(split.losses.var(correction=0))
    return skill(split) > chance + 2.0 * math.sqrt(variance / len(split))


@gate
def outputs_finite(seen: Evidence) -> bool | None:
    """Do the original, the retrained and the row's own model give a softmax on every sample?

    Why: a method's model without one ends as ``diverged``, but a reference has a row all the same, and one NaN in it
    turns the gaps of every method into NaN or, worse, into a number that looks like one.
    A failure means: the training of a reference blew up.
    What to do: lower the learning rate of the recipe and run again.
    """
    every = (of[name] for of in (seen.outputs, seen.original, seen.retrained) for name in of if of.has(name))
    # A class switched off by minus infinity is legal: the largest logit is what must be finite.
    return all(split.finite for split in every)


@gate
def original_above_chance(seen: Evidence) -> bool | None:
    """Does the original model know the retain set better than by guessing (two standard errors above 1 / classes)?

    Why: what was never learnt cannot be forgotten; every method looks perfect on an untrained model.
    A failure means: the recipe is too short or its learning rate is off for this model and dataset.
    What to do: train longer (``recipe: {epochs: ...}``), and look at the accuracy of the line ``original``.
    """
    return beats_guessing(seen.original["retain"], seen.chance)


@gate
def retrained_not_worse(seen: Evidence) -> bool | None:
    """Is the retrained model at most 10 points below the original on the retain set?

    Why: it is trained on that set by the same recipe. It may lose what the forget set taught the original, but a model
    that lost the recipe is no reference, and gaps to it mean nothing.
    A failure means: the training is unstable, or too little data is left to retain.
    What to do: make the recipe steadier (a lower learning rate, more epochs) or forget less.
    """
    return skill(seen.retrained["retain"]) >= skill(seen.original["retain"]) - 0.1


@gate
def retrained_is_another(seen: Evidence) -> bool | None:
    """Does the retrained model answer otherwise than the original, in any logit of the retain set?

    Why: two models trained on different data never agree to the last bit; equal ones are one model under two names,
    and then doing nothing is the best method.
    A failure means: the forget set is empty, nothing was trained (``epochs: 0``), or a reference model was mixed up.
    What to do: look at the recipe and at ``forget_size``; if both are sound, report it as a bug.
    """
    return not _same(seen.original, seen.retrained, ("retain",))


@gate
def retain_above_chance(seen: Evidence) -> bool | None:
    """Is the model's accuracy on the retain set more than a tenth of the way from chance to perfect?

    Why: a destroyed model forgets everything, at once and at no cost; on the forget set alone it would win.
    A failure means: the method destroyed the model at this setting.
    What to do: tune with more settings or narrower ranges; if it stays so, that is the method's result here.
    """
    return skill(seen.outputs["retain"]) > seen.chance + 0.1 * (1.0 - seen.chance)


@gate
def validation_above_chance(seen: Evidence) -> bool | None:
    """Does the model know unseen samples of the remaining classes better than by guessing, where the retrained one
    does (two standard errors above 1 / classes)?

    Why: a model that only recites the retain set has lost what it was trained for.
    A failure means: the method destroyed what generalises, say the batch-norm statistics, and fitted the rest anew.
    What to do: tune anew, and look at ``test_accuracy`` beside ``retain_accuracy``. Null where the retrained model does
    no better than guessing either, and where there is no validation sample.
    """
    splits = (seen.outputs, seen.retrained)
    if not all(of.has("validation") for of in splits) or not beats_guessing(seen.retrained["validation"], seen.chance):
        return None
    return beats_guessing(seen.outputs["validation"], seen.chance)


@gate
def weights_changed(seen: Evidence) -> bool | None:
    """Does any weight or buffer differ from the original's?

    Why: a method that returns the original by mistake looks cheap and gentle. Public unlearning code did so where an
    optimiser held another network's parameters.
    A failure means: the setting does nothing (a threshold that selects no weight, a stop before the first step), or a
    bug.
    What to do: read the line's ``hparams``. Null for the references, for methods that are declared to change nothing
    and for results that are not a network with weights of their own.
    """
    return seen.weights_changed if seen.acts else None


@gate
def outputs_changed(seen: Evidence) -> bool | None:
    """Does the model answer otherwise than the original, in any logit of any split?

    Why: weights may change where they have no effect, and an ensemble has no weights to compare.
    A failure means: as for ``weights_changed``: nothing was unlearned.
    What to do: read the line's ``hparams``. Null for the references and for methods that are declared to change
    nothing.
    """
    return not _same(seen.outputs, seen.original, _SPLITS) if seen.acts else None


def _same(first: Outputs, second: Outputs, names: Iterable[str]) -> bool:
    """Bit-equal logits on every split that both have (NaN is never equal)."""
    both = [name for name in names if first.has(name) and second.has(name)]
    return all(
        first[name].said.shape == second[name].said.shape and bool((first[name].said == second[name].said).all())
        for name in both
    )


@dataclass(frozen=True)
class Entry:
    """A gate for people: what it asks, why, what a failure means and what to do about it."""

    name: str
    asks: str
    why: str
    failure: str
    remedy: str


def entries() -> list[Entry]:
    """One record per gate, in their order, from the docstrings; ``ValueError`` for one without its parts."""
    return [_entry(name, inspect.getdoc(judge) or "") for name, judge in _GATES.items()]


def _entry(name: str, doc: str) -> Entry:
    asks, _, rest = doc.partition("\n\n")
    parts: list[str] = []
    for title, following in zip(PARTS, (*PARTS[1:], None), strict=True):
        _, found, text = rest.partition(f"{title}: ")
        if not found:
            raise ValueError(f"the docstring of gate {name} must say '{title}: '")
        parts.append(" ".join((text.partition(f"{following}: ")[0] if following else text).split()))
    return Entry(name, " ".join(asks.split()), *parts)


def render(form: str) -> str:
    """As table (for a terminal), markdown (the committed page) or json (a list of objects)."""
    found = entries()
    if form == "json":
        return json.dumps([asdict(entry) for entry in found], indent=1)
    if form == "markdown":
        return "\n".join(_page(found))
    return "\n".join(line for entry in found for line in _lines(entry))


def _lines(entry: Entry) -> tuple[str, ...]:
    parts = zip(PARTS, (entry.why, entry.failure, entry.remedy), strict=True)
    return entry.name, f"  {entry.asks}", *(f"  {title}: {text}" for title, text in parts), ""


def _page(found: Iterable[Entry]) -> Iterable[str]:
    yield "# Sanity gates"
    yield ""
    yield "What must hold before a row's numbers mean anything. Every row has them as JSON in the column `gates`: true,"
    yield "false, or null where a gate cannot be judged; a line's gate holds where it holds in all of its rows. A line"
    yield "that fails one stays in the files, but tables hide it (not `raybench leaderboard RESULTS --gated`), and it"
    yield "is not ranked, not on the front, and shares the last rank over problems."
    for entry in found:
        yield ""
        yield f"## {entry.name}"
        yield ""
        parts = zip(PARTS, (entry.why, entry.failure, entry.remedy), strict=True)
        yield " ".join([entry.asks, *(f"*{title}:* {text}" for title, text in parts)]).replace("``", "`")
    yield ""
    yield "## What is no gate"
    yield ""
    yield "A gate must not hide a correct line. So these are marks and reasons instead:"
    yield ""
    yield "- *The scenario cannot tell forgetting from doing nothing*: its lines are `unresolved` and not ranked."
    yield "- *The forget set is too small for an attack*: that metric is null, with its reason in `missing`."
    yield "- *Fewer than three train seeds*: the line is shown with its `n` and not ranked unless forced."
    yield "- *The method forgets too much or too little*: that is what the gaps measure."
    yield ""
    yield "Gates are part of the code, not of the protocol version: a new gate changes no number, only which lines are"
    yield "shown and ranked, and it judges new rows alone. Two runs of one spec agree on `gates` where the same version"
    yield f"of raybench made them. This page: `{COMMAND}`."
