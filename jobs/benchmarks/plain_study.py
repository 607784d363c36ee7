"""One study as papers' pipelines search: plain PyTorch, Optuna and a process of its own. Called by ``against_peer.py``.

    python jobs/benchmarks/plain_study.py FOLDER METHOD TRIALS

The steps are those of the DeepUnlearn pipeline (read, not copied): every trial loads data and both models from files
anew, makes DataLoaders over single PIL images, unlearns, keeps the weights on disk, and evaluates the retrained model
beside the unlearned one: accuracies of four splits, and a membership attack on losses of forget against validation and
against test data (logistic regression, ten splits). NSGA-III over four objectives, told to SQLite. The methods are the
same rules with the same search spaces as raybench's. ``FOLDER`` has ``data.npz``, ``original.pt`` and ``retrained.pt``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raybench.problem import build_model
from raybench.registry import METHODS
from raybench.space import resolve, search_space
from raybench.spec import Choice

EVALUATION_BATCH = 256
Loaders = Callable[[str, int, bool], DataLoader]


class Pictures(Dataset):
    """PIL images, one at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain_network() -> nn.Module:
    """LeNet-5 of torch's own layers."""
    model = build_model(Choice("lenet5"), 10, (1, 28, 28))
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.MaxPool2d(2))
    return model


def load(folder: Path) -> tuple[Loaders, nn.Module, nn.Module]:
    """Data and both models, from files."""
    data = np.load(folder / "data.npz")
    steps = [transforms.ToTensor(), transforms.Normalize(data["mean"].tolist(), data["std"].tolist())]
    transform = transforms.Compose(steps)

    def loader(split: str, batch_size: int, shuffle: bool) -> DataLoader:
        pictures = Pictures(data[f"{split}_images"], data[f"{split}_labels"], transform)
        return DataLoader(pictures, batch_size=batch_size, shuffle=shuffle)

    models = []
    for name in ("original", "retrained"):
        model = plain_network()
        model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        models.append(model)
    return loader, models[0], models[1]


def descend(
    model: nn.Module, hp: Any, batches: Callable[[], Any], loss: Callable[..., Tensor], after: Any = None
) -> None:
    """SGD over as many passes as the setting says."""
    optimiser = torch.optim.SGD(model.parameters(), lr=hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay)
    model.train()
    for _ in range(hp.epochs):
        for batch in batches():
            optimiser.zero_grad()
            loss(*batch).backward()
            optimiser.step()
            if after is not None:
                after()


def finetune(model: nn.Module, loader: Loaders, hp: Any) -> None:
    retain = loader("retain", hp.batch_size, True)
    descend(model, hp, lambda: retain, lambda x, y: F.cross_entropy(model(x), y))


def neggrad_plus(model: nn.Module, loader: Loaders, hp: Any) -> None:
    retain, forget = (loader(split, hp.batch_size, True) for split in ("retain", "forget"))

    def loss(kept: Any, gone: Any) -> Tensor:
        weight = hp.forget_weight
        return (1 - weight) * F.cross_entropy(model(kept[0]), kept[1]) - weight * F.cross_entropy(
            model(gone[0]), gone[1]
        )

    descend(model, hp, lambda: zip(retain, itertools.cycle(forget), strict=False), loss)


def scrub(model: nn.Module, loader: Loaders, hp: Any) -> None:
    teacher = copy.deepcopy(model).eval()
    forget, retain = loader("forget", hp.forget_batch_size, True), loader("retain", hp.batch_size, True)
    optimiser = torch.optim.SGD(model.parameters(), lr=hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay)

    def divergence(x: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher(x)
        t = hp.temperature
        soft = F.log_softmax(logits / t, 1), F.softmax(answers / t, 1)
        return t**2 * F.kl_div(*soft, reduction="batchmean")

    def step(value: Tensor, clip: float | None = None) -> None:
        optimiser.zero_grad()
        value.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()

    for epoch in range(1, hp.epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = hp.lr * hp.decay ** sum(epoch > after for after in hp.decay_after)
        model.train()
        for x, _ in forget if epoch <= hp.max_epochs else ():
            step(-divergence(x, model(x)), hp.clip_norm)
        for x, y in retain:
            logits = model(x)
            step(hp.gamma * F.cross_entropy(logits, y) + hp.alpha * divergence(x, logits))


def salun(model: nn.Module, loader: Loaders, hp: Any) -> None:
    forget, retain = loader("forget", hp.batch_size, True), loader("retain", hp.batch_size, True)
    model.eval().zero_grad()
    for x, y in forget:
        F.cross_entropy(model(x), y).backward()
    sizes = torch.cat([p.grad.abs().flatten() for p in model.parameters()])
    least = sizes.kthvalue(max(1, round((1 - hp.share) * sizes.numel()))).values
    masks = [p.grad.abs() > least for p in model.parameters()]
    start = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def hold() -> None:
        for p, mask, was in zip(model.parameters(), masks, start, strict=True):
            p.copy_(torch.where(mask, p, was))

    def batches() -> Any:
        for x, y in forget:
            yield x, (y + torch.randint(1, 10, y.shape)) % 10
        yield from retain

    descend(model, hp, batches, lambda x, y: F.cross_entropy(model(x), y), hold)


def importances(model: nn.Module, batches: Any) -> list[Tensor]:
    """Squared gradients of batches, averaged."""
    total, count = [torch.zeros_like(p) for p in model.parameters()], 0
    model.eval()
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        count += 1
        for sums, p in zip(total, model.parameters(), strict=True):
            sums += p.grad.square()
    return [sums / count for sums in total]


def ssd(model: nn.Module, loader: Loaders, hp: Any) -> None:
    forget = importances(model, loader("forget", hp.batch_size, False))
    whole = importances(model, loader("train", hp.batch_size, True))
    with torch.no_grad():
        for p, mine, all_of_it in zip(model.parameters(), forget, whole, strict=True):
            beta = (hp.dampening * all_of_it / mine).clamp(max=1.0)
            p.copy_(torch.where(mine > hp.alpha * all_of_it, beta * p, p))


def deepclean(model: nn.Module, loader: Loaders, hp: Any) -> None:
    """Per-sample importances as other people's code has them: batches of one."""
    forget, whole = (importances(model, loader(split, 1, False)) for split in ("forget", "retain"))
    unit = sum(float(f.sum()) for f in forget) / sum(float(r.sum()) for r in whole)
    chosen = [f / (r + 1e-8 * r.mean() + 1e-30) > hp.gamma * unit for f, r in zip(forget, whole, strict=True)]
    with torch.no_grad():
        for p, mask in zip(model.parameters(), chosen, strict=True):
            p[mask] = 0.0
    held = [p.detach().clone() for p in model.parameters()]
    optimiser, retain = torch.optim.Adam(model.parameters(), lr=hp.lr), loader("retain", hp.batch_size, True)
    model.train()
    for _ in range(hp.epochs):
        for x, y in retain:
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
            with torch.no_grad():
                for p, mask, was in zip(model.parameters(), chosen, held, strict=True):
                    p.copy_(torch.where(mask, p, was))


@torch.no_grad()
def predicted(model: nn.Module, batches: DataLoader) -> float:
    """Accuracy."""
    model.eval()
    right = [(model(x).argmax(1) == y) for x, y in batches]
    return float(torch.cat(right).double().mean())


@torch.no_grad()
def losses(model: nn.Module, batches: DataLoader) -> np.ndarray:
    """Cross-entropy of each sample."""
    model.eval()
    return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in batches]).numpy()


def attack(members: np.ndarray, others: np.ndarray) -> float:
    """Accuracy of telling losses apart, ten splits."""
    size = min(len(members), len(others))
    draw = np.random.default_rng(0)
    both = np.concatenate([draw.permutation(side)[:size] for side in (members, others)])[:, None]
    folds = StratifiedShuffleSplit(n_splits=10, random_state=0)
    return float(cross_val_score(LogisticRegression(), both, np.repeat([1, 0], size), cv=folds).mean())


def evaluated(model: nn.Module, loader: Loaders) -> dict[str, float]:
    """All numbers of one model."""
    splits = {name: loader(name, EVALUATION_BATCH, False) for name in ("retain", "forget", "validation", "test")}
    found = {name: predicted(model, batches) for name, batches in splits.items()}
    for name in ("validation", "test"):
        found[f"attack_{name}"] = attack(losses(model, splits["forget"]), losses(model, splits[name]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method", choices=["finetune", "neggrad_plus", "scrub", "salun", "ssd", "deepclean"])
    parser.add_argument("trials", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = METHODS[given.method].hparams
    space = search_space(settings, {}, {}, given.method)
    kept = given.folder / f"study_{given.method}"
    kept.mkdir()
    gaps: list[float] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        hp = resolve(settings, {name: trial._suggest(name, kind) for name, kind in space.items()}, given.method)
        loader, model, retrained = load(given.folder)
        globals()[given.method](model, loader, hp)
        torch.save(model.state_dict(), kept / f"{trial.number}.pt")
        if any(not bool(torch.isfinite(value).all()) for value in model.parameters()):
            return (float("nan"),) * 4  # it diverged: Optuna counts a failed trial and goes on
        loader, *_ = load(given.folder)
        mine, reference = evaluated(model, loader), evaluated(retrained, loader)
        gap = [abs(mine[name] - reference[name]) / 3 for name in ("retain", "forget", "validation")]
        gaps.append(sum(gap))
        return (*gap, 2 * abs(mine["attack_validation"] - 0.5))

    began = time.process_time()
    sampler = optuna.samplers.NSGAIIISampler(seed=0)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{kept}/study.db", sampler=sampler, directions=["minimize"] * 4, study_name=given.method
    )
    study.optimize(objective, n_trials=given.trials)
    print(json.dumps({"best": min(gaps), "trials": len(gaps), "search_s": time.process_time() - began}))


if __name__ == "__main__":
    main()
