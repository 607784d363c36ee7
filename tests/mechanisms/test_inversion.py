import pytest
import torch
from torch import nn

from raybench.mechanisms.inversion import Inversion, invert, recorded_norm_inputs, statistics_distance, total_variation
from raybench.seeding import seeded_globals


def network(norm=True):
    with seeded_globals(0):
        norms = [nn.BatchNorm2d(4)] if norm else []
        return nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def images(n=16, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_statistics_distance_is_zero_when_the_batch_statistics_are_stored():
    model, x = network(), images()
    with torch.no_grad():
        conv = model[0](x)
        model[1].running_mean.copy_(conv.mean((0, 2, 3)))
        model[1].running_var.copy_(conv.var((0, 2, 3), unbiased=False))
        with recorded_norm_inputs(model) as met:
            model(x)
        assert statistics_distance(met) < 1e-5
        model[1].running_mean += 3.0  # four channels off by 3: a norm of 6
        assert statistics_distance(met) == pytest.approx(6.0, abs=1e-4)
        assert statistics_distance(met, first_multiplier=10.0) == pytest.approx(60.0, abs=1e-3)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_statistics_distance_without_batch_norm_is_zero():
    model = network(norm=False)
    with recorded_norm_inputs(model) as met:
        model(images())
    assert statistics_distance(met) == 0.0


def test_total_variation_of_flat_and_of_known_images():
    assert total_variation(torch.ones(2, 1, 5, 5)) == 0.0
    step = torch.zeros(1, 1, 2, 2)
    step[..., 1] = 1.0  # right: two differences of 1; down: none; each diagonal: one
    assert total_variation(step) == pytest.approx(2**0.5 + 0 + 1 + 1)


@pytest.mark.parametrize("norm", [True, False])
def test_inverted_images_are_recognised_within_bounds_and_repeatable(norm):
    model = network(norm)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    labels = torch.arange(3).repeat_interleave(4)
    bounds = (torch.tensor(-1.0), torch.tensor(1.5))

    def run(steps=60):
        generator, settings = torch.Generator().manual_seed(3), Inversion(steps=steps, statistics=0.1, jitter=0)
        return invert(model, labels, (1, 8, 8), generator, settings, bounds)

    made = run()
    assert not made.requires_grad
    assert made.min() >= -1.0
    assert made.max() <= 1.5
    assert torch.equal(made, run())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    assert (model(made).argmax(1) == labels).all()
    assert (model(run(steps=0)).argmax(1) == labels).double().mean() < 0.8  # noise alone does not do it


def test_statistics_term_pulls_the_statistics_of_the_images():
    model, labels = network(), torch.zeros(16, dtype=torch.int64)
    distances = []
    for weight in (0.0, 10.0):
        made = invert(
            model, labels, (1, 8, 8), torch.Generator().manual_seed(0), Inversion(steps=60, statistics=weight)
        )
        with torch.no_grad(), recorded_norm_inputs(model) as met:
            model(made)
        distances.append(float(statistics_distance(met)))
    assert distances[1] < 0.5 * distances[0]
