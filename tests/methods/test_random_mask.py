"""Random mask: as many entries as DeepClean in every tensor, chosen by chance; all else the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raybench.errors import UserError
from raybench.mechanisms.selective_reset import select_by_fisher
from raybench.methods.random_mask import RandomMaskHparams
from raybench.registry import METHODS
from raybench.space import resolve, searched
from raybench.task import UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method


def narrow_vgg() -> Bench:
    return make_bench("vgg8", samples=120, model_options=(("width", 3),))


def chosen(bench: Bench, method: str = "random_mask", seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """Which entries the reset to zero reached; no weight of an original is zero by itself."""
    model = run_method(method, make_task(method, bench=bench, seed=seed), tiny=False, epochs=0, **options)
    return {name: p.detach() == 0.0 for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 1.0, "cap": 0.4},
        {"gamma": None, "quantile": 0.2, "exclude_norm": True},
        {"gamma": 1.5, "gamma_unit": "absolute"},
    ],
)
def test_as_many_entries_of_each_tensor_as_deepclean_but_others(options: dict[str, Any]) -> None:
    bench = narrow_vgg()
    mine, theirs = chosen(bench, **options), chosen(bench, "deepclean", **options)
    untouched = {name for name, p in bench.original.model.named_parameters() if bool((p == 0.0).any())}
    assert all(int(mine[n].sum()) == int(theirs[n].sum()) for n in mine.keys() - untouched)
    assert sum(int(m.sum()) for m in mine.values()) > 50
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)


def test_same_settings_report_the_same_share_and_cost_the_same() -> None:
    bench, tasks = make_bench("mlp"), {}
    for method in ("deepclean", "random_mask"):
        tasks[method] = make_task(method, bench=bench)
        run_method(method, tasks[method], epochs=2)
    one, other = (tasks[m].reported.scalars["selected"] for m in ("deepclean", "random_mask"))
    assert one == other
    passes: list[tuple[float, float]] = [(t._passes.forward, t._passes.backward) for t in tasks.values()]
    assert passes[0] == pytest.approx(passes[1])


def test_chance_decides_and_the_seed_decides_chance() -> None:
    bench = make_bench("mlp")
    options = {"gamma": None, "share": 0.25}
    one, same, other = (chosen(bench, seed=seed, **options)["blocks.0.1.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    both = float((one & other).float().mean())
    assert both == pytest.approx(0.25**2, abs=0.01)  # independent draws
    rows = one.float().mean(1)
    assert float(rows.std()) < 0.05  # binomial over 784 inputs: 0.016


def test_share_is_of_every_tensor_and_needs_no_fisher_diagonal() -> None:
    bench = make_bench("mlp")
    task = make_task("random_mask", bench=bench)
    asked: list[str] = []
    task._once = lambda name, *_: asked.append(name)  # type: ignore[assignment,return-value,func-returns-value]
    model = run_method("random_mask", task, tiny=False, gamma=None, share=0.3, reset="zero", epochs=0)
    for name, p in model.named_parameters():
        assert int((p == 0.0).sum()) == round(0.3 * p.numel()), name
    assert asked == []
    assert task._passes.backward == 0.0


def test_fine_tuning_is_deepcleans() -> None:
    """With every entry selected there is nothing to choose: both end at the same weights, full batches given."""
    bench = make_bench("mlp", model_options=(("hidden", ()),))
    size = len(make_task("deepclean", bench=bench).retain)
    options: dict[str, Any] = {"gamma": None, "quantile": 1.0, "cap": 1.0, "epochs": 3, "batch_size": size}
    ends = []
    for method in ("deepclean", "random_mask"):
        model = run_method(method, make_task(method, bench=bench), tiny=False, **options)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


def test_keeps_what_it_may() -> None:
    task: UnlearningTask = make_task("random_mask", bench=narrow_vgg())
    buffers = {name: b.clone() for name, b in task.model.named_buffers()}
    mask, _ = select_by_fisher(task, RandomMaskHparams())
    assert set(mask) == {name for name, _ in task.model.named_parameters()}
    model = run_method("random_mask", task, bn_buffers="freeze")
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())


def test_settings() -> None:
    """DeepClean's, in the same order and ranges, and one more."""
    mine, theirs = searched(RandomMaskHparams), searched(METHODS["deepclean"].hparams)
    assert list(mine.items()) == list(theirs.items())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"share": 0.1}, "share must select alone, got gamma=2.0"),
        ({"share": 0.1, "gamma": None, "quantile": 0.1}, "share must select alone"),
        ({"share": 1.5, "gamma": None}, r"share must be in \(0, 1\], got 1.5"),
        ({"share": 0.5, "gamma": None, "cap": 0.0}, r"cap must be in \(0, 1\], got 0.0"),
        ({"gamma": None}, "exactly one of gamma and quantile"),
    ]
    for values, message in cases:
        with pytest.raises(UserError, match=message):
            resolve(RandomMaskHparams, values, "random_mask")
