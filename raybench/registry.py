"""Registries of the plug-in kinds: a name, a function, and a frozen record of metadata beside it.

A plug-in is one file in ``raybench/<kind>s/`` whose file, function and key are the same word.
Third parties add theirs through packaging entry points (group ``raybench.methods`` and so on) or
through ``plugins:`` in an experiment (importable names, resolved in every worker).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from raybench.errors import UserError, unknown

# What a method may ask for (``needs``).
FORGET = "forget"
RETAIN = "retain"
VALIDATION = "validation"
# What kind of forget request a scenario makes, and a method can serve (``scope``).
CLASS = "class"
SAMPLE = "sample"
# What a model is trained to do, and a method or a metric can serve (``task``, ``tasks``): see ``raybench.task_kinds``.
CLASSIFICATION = "classification"
DENOISING = "denoising"
# How a metric is read (``direction``).
HIGHER = "higher"
LOWER = "lower"
MATCH_RETRAINED = "match_retrained"
# What of the oracle pool a metric needs (``pool``).
ORACLES = "oracles"
WORLDS = "worlds"
HALF_WORLDS = "half_worlds"
WHOLE_WORLDS = (WORLDS, HALF_WORLDS)
WORDS = {
    "needs": frozenset({FORGET, RETAIN, VALIDATION}),
    "scope": frozenset({CLASS, SAMPLE}),
    "tasks": frozenset({CLASSIFICATION, DENOISING}),
}

Fn = TypeVar("Fn", bound=Callable[..., Any])


@dataclass(frozen=True)
class NoParameters:
    """Nothing to set."""


@dataclass(frozen=True)
class Entry:
    """What every registered thing has. ``fn`` is the registered function, untouched."""

    name: str
    fn: Callable[..., Any]
    label: str = ""
    version: int = 1
    paper: str = ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (self.fn.__doc__ or "").strip().split("\n")[0]


@dataclass(frozen=True)
class MethodEntry(Entry):
    """An unlearning method. See ``raybench.task.UnlearningTask`` for what ``fn(task, hp)`` may see."""

    hparams: type = NoParameters
    needs: frozenset[str] = frozenset()
    scope: frozenset[str] = frozenset({CLASS, SAMPLE})
    tasks: frozenset[str] = frozenset({CLASSIFICATION})  # more where it takes the data loss from ``task.loss`` alone
    tiny: Mapping[str, Any] = field(default_factory=dict)  # overrides that make a test run small
    identity: bool = False  # declared to leave the weights alone
    reference: bool = False  # original and retrain: run as references, never searched
    predictor: bool = False  # returns a callable images -> logits that is not one module
    fresh: bool = False  # returns a newly built network, not an edited copy of the original
    training: str | None = None  # the own training (TRAININGS key) that its original model needs
    no_op_default: str = ""  # why the defaults provably change nothing, where that is so
    skip: Callable[..., str | None] | None = None  # (problem facts, hp) -> reason it cannot run, or None
    complexity: str = (
        ""  # cost in sample passes as the method is published: "E N_r", with N_f, N_r, E epochs, K classes
    )
    batch_norm: str = ""  # what happens to the buffers of batch norm: "read", "move", "move unless ..."


@dataclass(frozen=True)
class TrainingEntry(Entry):
    """Own training of an original model: ``fn(job) -> Trained(model, artefacts)``.

    ``network(build, hparams)`` makes the module that such a model's weights fit, where that is not ``build()`` itself:
    an ensemble, another head. ``build`` makes a new network of the problem's architecture.
    """

    hparams: type = NoParameters
    network: Callable[[Callable[[], Any], Any], Any] | None = None


@dataclass(frozen=True)
class ModelEntry(Entry):
    """``fn(num_classes, input_shape, **options) -> nn.Module`` that follows ``raybench.contract``.

    ``published``: the name of torchvision's model that has the same tensors in the same order, if there is one; its
    weight files then fit too (``raybench.weights``). ``task``: what it is trained to do; only classifiers follow the
    contract, a denoiser is ``model(x_t, t)`` as ``raybench.diffusion`` calls it.
    """

    published: str = ""
    task: str = CLASSIFICATION


@dataclass(frozen=True)
class DatasetEntry(Entry):
    """``fn(root, download, **options) -> raybench.data.RawData``.

    ``recipe``: how the field trains on it, under what a spec's own ``recipe`` says. ``files``: it is made of image
    files that are decoded at the first use, which takes time.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    files: bool = False


@dataclass(frozen=True)
class ScenarioEntry(Entry):
    """``fn(images, labels, num_classes, params, rng) -> raybench.data.Request``; ``params`` a dataclass type.

    ``images`` may be ``raybench.streamed.Rows`` where they do not fit the memory. A function with the parameter
    ``source`` gets ``raybench.data.Source``: row numbers and subclasses. The file that a parameter ``file`` names is
    part of what identifies a problem.
    """

    params: type = NoParameters
    kind: str = SAMPLE
    # (params) -> whether it changes labels or images, so that a clean model stands beside the retrained one; and
    # whether it asks several times, so that a method starts from what it left.
    corrupts: Callable[[Any], bool] = field(default=lambda params: False)
    in_turn: Callable[[Any], bool] = field(default=lambda params: False)


@dataclass(frozen=True)
class Attack:
    """What a membership-attack number is. Papers print three opposite quantities under the one name MIA, so each
    number of an attack carries these words."""

    attack: str
    """Who decides: a threshold, a logistic regression, a support vector machine, a likelihood ratio."""
    score: str
    """What it sees of a sample, such as the loss."""
    fit_on: str
    """Samples that it was fitted on, members against non-members."""
    apply_to: str
    """Samples that it judges."""
    reported_quantity: str
    """What the number counts, such as the share judged non-member."""


@dataclass(frozen=True)
class MetricEntry(Entry):
    """A function of cached outputs, see ``raybench.outputs``, or of models and data, see ``raybench.probe``.

    ``pair = False``: ``fn(outputs, context) -> float``; the harness computes it for the unlearned and for
    the retrained model and adds the signed gap. ``pair = True``: ``fn(outputs, retrained, context) -> float``; one
    with ``direction = MATCH_RETRAINED`` is a ratio, whose gap is measured from the retrained model's against itself.
    ``final_only`` metrics look at the test set, so a search never computes them. Nor those that ``fits`` says fit a
    classifier, which takes as long as the forward passes: no search selects by them.
    ``probe = True``: ``fn(probe, context) -> float`` gets models and data; with ``pair`` it compares with the
    retrained model itself. Only finals and references run probes, only where a spec names them.
    ``pool``: what of the oracle pool (``raybench.pool``) it needs, so that it is measured after the finals: ORACLES,
    further retrained models, asked for through ``context``; WORLDS or HALF_WORLDS, whole worlds of models,
    ``fn(worlds, context) -> float`` then. A statistic whose bias depends on the number of models says HALF_WORLDS: it
    is averaged over draws of half of each world, and so is its retrained value, two disjoint halves of the gold world.
    """

    unit: str = "fraction"
    range: tuple[float | None, float | None] = (0.0, 1.0)
    direction: str = MATCH_RETRAINED
    pair: bool = False
    final_only: bool = False
    fits: bool = False
    probe: bool = False
    pool: str = ""
    tasks: frozenset[str] = frozenset({CLASSIFICATION})  # what kinds of model it measures
    attack: Attack | None = None  # of every number that comes from one membership attack


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """Names of one kind. Built-in plug-ins and entry points are imported at the first look-up."""

    def __init__(self, kind: str, record: type[E], package: str) -> None:
        self.kind = kind
        self.package = package
        self._record = record
        self._entries: dict[str, E] = {}
        self._loaded = False

    def register(self, name: str, **metadata: Any) -> Callable[[Fn], Fn]:
        """Decorator. A name that is taken, or a word that ``needs``, ``scope`` and ``tasks`` do not have, raises
        ``ValueError``; unknown metadata raises ``TypeError``."""

        def add(fn: Fn) -> Fn:
            for key, words in WORDS.items():
                if key in metadata:
                    metadata[key] = frozenset(metadata[key])
                    if not metadata[key] <= words:  # a bare string falls apart into letters here
                        raise ValueError(f"{key} of {self.kind} {name!r} must be a set of {sorted(words)}")
            entry = self._record(name=name, fn=fn, **{"label": name, **metadata})
            old = self._entries.get(name)
            if old is not None and _origin(old.fn) != _origin(fn):
                raise ValueError(f"{self.kind} {name!r} is registered twice: {_origin(old.fn)} and {_origin(fn)}")
            self._entries[name] = entry
            return fn

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # before the imports: a plug-in may look at the registry while it is loaded
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for point in importlib.metadata.entry_points(group=self.package):
                _load_entry_point(point)
        except BaseException:
            self._loaded = False  # else every later look-up would call the rest unknown
            raise

    def __getitem__(self, name: str) -> E:
        self._load()
        found = self._entries.get(name) or self._family(name)
        if found is None:
            raise unknown(self.kind, name, self._entries)
        return found

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries or self._family(name) is not None

    def _family(self, name: str) -> E | None:
        """The entry of a prefix family such as ``timm:<name>``: its function has a parameter ``family``."""
        head, colon, _ = name.partition(":")
        entry = self._entries.get(head) if colon else None
        return entry if entry is not None and "family" in inspect.signature(entry.fn).parameters else None

    def __iter__(self) -> Iterator[E]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return [entry.name for entry in self]


class MethodRegistry(Registry[MethodEntry]):
    """Methods, with the own trainings of some of them beside."""

    def training(self, name: str, **metadata: Any) -> Callable[[Fn], Fn]:
        """Decorator for an own training, registered in ``TRAININGS`` under the method's name."""
        return TRAININGS.register(name, **metadata)


def _origin(fn: Callable[..., Any]) -> str:
    return f"{fn.__module__}.{fn.__qualname__}"


def _load_entry_point(point: importlib.metadata.EntryPoint) -> None:
    try:
        point.load()
    except Exception as error:  # whatever a third party's import does, the message must say whose it is
        owner = point.dist.name if point.dist is not None else "an installed package"
        raise UserError(
            f"entry point {point.name!r} ({point.value}) of {owner} must import, got {type(error).__name__}: {error}; "
            "mend or uninstall that package"
        ) from error


def load_plugins(names: tuple[str, ...]) -> None:
    """Import the importable names of ``plugins:`` so that they register themselves."""
    for name in names:
        if not name or name.startswith("."):
            raise UserError(f"plugins must be full module names such as my_package.methods, got {name!r}; write it out")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"plugins must be importable module names, got {name!r} ({error}); "
                "install the package or set PYTHONPATH"
            ) from error
        except Exception as error:  # whatever else somebody's module does when it is imported
            raise UserError(
                f"plugins must import without an error, got {type(error).__name__} from {name!r} ({error}); mend it"
            ) from error


METHODS = MethodRegistry("method", MethodEntry, "raybench.methods")
TRAININGS: Registry[TrainingEntry] = Registry("training", TrainingEntry, "raybench.methods")
MODELS: Registry[ModelEntry] = Registry("model", ModelEntry, "raybench.models")
DATASETS: Registry[DatasetEntry] = Registry("dataset", DatasetEntry, "raybench.datasets")
SCENARIOS: Registry[ScenarioEntry] = Registry("scenario", ScenarioEntry, "raybench.scenarios")
METRICS: Registry[MetricEntry] = Registry("metric", MetricEntry, "raybench.metrics")
KINDS: dict[str, Registry[Any]] = {
    "methods": METHODS,
    "models": MODELS,
    "datasets": DATASETS,
    "scenarios": SCENARIOS,
    "metrics": METRICS,
}
