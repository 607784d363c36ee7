"""A training shared by processes: the steps of one process, up to rounding; a resume, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from raybench.content_store import ContentStore
from raybench.data import Pixels, Split
from raybench.distributed import KIND, Checkpoints, Share, fit_shared
from raybench.seeding import seeded_globals
from raybench.synced_norm import SyncedBatchNorm, share_batch_norm, sum_over_processes
from raybench.training import Recipe, fit

SEED = 5


class Net(nn.Module):
    """Convolution, both kinds of batch norm, a linear layer; small, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.linear, self.flat_norm = nn.Linear(4 * 6 * 6, 5), nn.BatchNorm1d(5, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(x.double())))
        output: Tensor = self.flat_norm(self.linear(hidden.flatten(1)))
        return output


def network() -> Net:
    with seeded_globals(0):
        return Net().double()


def split(samples: int = 53) -> Split:
    """53 samples in batches of 8: the last one has 5, which two processes share as 2 and 3."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (samples,), generator=generator)
    pixels = Pixels(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.3))
    return Split(images, labels, torch.arange(samples), pixels, "crop_flip", torch.Generator().manual_seed(2))


def together(world: int, folder: Path, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``body(*arguments)`` returns in each of ``world`` processes that talk through gloo."""
    folder.mkdir(exist_ok=True)
    start_processes(_process, (world, folder, body, arguments), nprocs=world, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _process(rank: int, world: int, folder: Path, body: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(body(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def train(recipe: Recipe, store: str = "", epochs_then_die: int = 0, samples: int = 53) -> dict[str, Any]:
    """In a process: weights and cost. Every epoch leaves a checkpoint; the training breaks off after some of them."""
    checkpoints = Checkpoints(ContentStore(store), "a training", every_s=0.0) if store else None
    model, data = network(), split(samples)
    calls = 0

    def spent() -> tuple[float]:
        nonlocal calls
        calls += 1
        if epochs_then_die and calls > epochs_then_die:
            raise InterruptedError
        return (float(calls),)

    try:
        cost = fit_shared(model, data, recipe, seed=SEED, checkpoints=checkpoints, spent=spent)
    except InterruptedError:
        return {}
    return {**model.state_dict(), "cost": cost, "order": data.generator.get_state() if data.generator else None}


def alone(recipe: Recipe, samples: int = 53) -> dict[str, Tensor]:
    model, data = network(), split(samples)
    with seeded_globals(SEED):
        fit(model, data, recipe)
    return {**model.state_dict(), "order": data.generator.get_state() if data.generator else torch.empty(0)}


@pytest.mark.parametrize(
    ("world", "recipe"),
    [
        (2, Recipe(epochs=4, batch_size=8)),
        (3, Recipe(epochs=3, batch_size=8, optimiser="adamw", clip_norm=0.1, warmup=0.2)),
    ],
)
def test_processes_make_the_steps_of_one(world: int, recipe: Recipe, tmp_path: Path) -> None:
    """In double precision nothing but rounding is left, through clipping, batch norm and a short last batch."""
    expected = alone(recipe)
    start = network().state_dict()
    for found in together(world, tmp_path, train, recipe):
        assert found.pop("cost") == [recipe.epochs * world]
        assert torch.equal(found.pop("order"), expected["order"])
        assert found.keys() == start.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-10)
            assert not torch.equal(tensor, start[name])


def test_a_process_may_have_nothing_of_a_short_batch(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=8)
    expected = alone(recipe, samples=34)  # batches of 8, and one of 2 for three processes
    for found in together(3, tmp_path, train, recipe, "", 0, 34):
        torch.testing.assert_close(found["linear.weight"], expected["linear.weight"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_resumed_training_ends_in_the_same_bits(optimiser: Any, tmp_path: Path) -> None:
    recipe = Recipe(epochs=5, batch_size=8, optimiser=optimiser)
    whole = together(2, tmp_path / "whole", train, recipe)
    store = str(tmp_path / "store")
    assert together(2, tmp_path / "first", train, recipe, store, 3) == [{}, {}]
    assert len(ContentStore(store).keys(KIND)) == 1  # older ones are dropped
    again = together(2, tmp_path / "second", train, recipe, store)
    for one, other in zip(whole, again, strict=True):
        assert other.pop("cost") == [3 * 2 + 2 * 2]  # what the first run spent in three epochs, and two more
        assert one.pop("cost") == [10.0]
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(ContentStore(tmp_path), "key")
    for epoch in (2, 4):
        checkpoints.save(epoch, {"t": torch.full((3,), epoch)}, {"cost": [1.0]}, older=0)
    assert checkpoints.latest(9) == 4
    newest = max(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.latest(9) == 2
    with pytest.raises(RuntimeError, match="checkpoint of epoch 4"):
        checkpoints.load(4)
    checkpoints.clear(9)
    assert list(tmp_path.rglob("record.json")) == []


@pytest.mark.parametrize(("samples", "world"), [(53, 2), (53, 5), (10, 8)])
def test_shares_put_together_are_the_batch(samples: int, world: int) -> None:
    parts = [list(Share(split(samples), rank, world).batches(8, augment=True, shuffle=True)) for rank in range(world)]
    for step, (images, labels) in enumerate(split(samples).batches(8, augment=True, shuffle=True)):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
        sizes = [len(part[step][1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def norms() -> list[Tensor]:
    """In a process: output, gradients and buffers of a synchronised layer on this process's part of ten samples."""
    rank = dist.get_rank()
    inputs = torch.arange(240.0, dtype=torch.float64).sin().view(10, 4, 6)[rank * 3 : 3 if rank == 0 else 10]
    inputs.requires_grad_(True)
    layer = share_batch_norm(nn.Sequential(nn.BatchNorm1d(4).double()))[0]  # type: ignore[index]
    assert isinstance(layer, SyncedBatchNorm)
    output = layer(inputs)
    output.pow(3).sum().backward()
    total = sum_over_processes(torch.ones(1))
    return [output.detach(), inputs.grad, layer.weight.grad, layer.running_mean, layer.running_var, total]


def test_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Against torch's own layer on all samples, forward, backward and in evaluation."""
    first, second = together(2, tmp_path, norms)
    inputs = torch.arange(240.0, dtype=torch.float64).sin().view(10, 4, 6).requires_grad_(True)
    layer = nn.BatchNorm1d(4).double()
    output = layer(inputs)
    output.pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([first[0], second[0]]), output.detach())
    torch.testing.assert_close(torch.cat([first[1], second[1]]), inputs.grad)
    torch.testing.assert_close(first[2] + second[2], layer.weight.grad)
    for part in (first, second):
        torch.testing.assert_close(part[3], layer.running_mean)
        torch.testing.assert_close(part[4], layer.running_var)
        assert part[5] == 2.0
    synced = SyncedBatchNorm(layer).eval()
    assert torch.equal(synced(inputs), layer.eval()(inputs))


def test_other_kinds_of_batch_norm_are_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"plain batch norm layers, got Odd at 0; set train_workers: 1"):
        share_batch_norm(nn.Sequential(Odd(3)))
