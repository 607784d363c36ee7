import math

import pytest
import torch
from torch import nn

from raybench.mechanisms.inversion import (
    Inversion,
    frozen,
    has_batch_norm,
    invert,
    no_statistics,
    recorded_norm_inputs,
    statistics_distance,
    total_variation,
    total_variation_l1,
)
from raybench.seeding import seeded_globals
from raybench.task import Facts


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


# --- the loss, against loops in float64 ------------------------------------------------------------------------


def shifted_differences(x):
    """The pairs of the four directions, pixel by pixel, of every image."""
    n, channels, height, width = x.shape
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        yield [
            float(x[i, c, r, s] - x[i, c, r + down, s + right])
            for i in range(n)
            for c in range(channels)
            for r in range(height - down)
            for s in range(max(0, -right), width - max(0, right))
        ]


def test_both_variations_equal_loops_over_pixels():
    x = images(3).double()[:, :, :5, :4]
    norms = [math.sqrt(sum(d * d for d in pairs)) for pairs in shifted_differences(x)]
    means = [sum(abs(d) for d in pairs) / len(pairs) for pairs in shifted_differences(x)]
    assert float(total_variation(x)) == pytest.approx(sum(norms), rel=1e-12)
    assert float(total_variation_l1(x)) == pytest.approx(sum(means), rel=1e-12)


def test_first_step_descends_the_loss_written_out():
    """Every term at once: the images of one plain step are those of Adam on the loss by hand."""
    model, labels = network().double(), torch.tensor([0, 2, 1])
    model[1].running_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    settings = Inversion(1, 0.1, total_variation=0.3, total_variation_l1=0.7, l2=0.5, statistics=2.0, jitter=0)
    settings = Inversion(**{**settings.__dict__, "first_multiplier": 3.0})
    x = start.double().requires_grad_(True)
    convolved = model[0](x)
    mean, variance = convolved.mean((0, 2, 3)), convolved.var((0, 2, 3), unbiased=False)
    loss = -sum(model(x)[i].log_softmax(0)[labels[i]] for i in range(3)) / 3
    loss = loss + 0.3 * total_variation(x) + 0.7 * total_variation_l1(x)
    loss = loss + 0.5 * sum(x[i].square().sum().sqrt() for i in range(3)) / 3
    distance = ((mean - model[1].running_mean) ** 2).sum().sqrt() + ((variance - 1.0) ** 2).sum().sqrt()
    loss = loss + 2.0 * 3.0 * distance + 0.25 * (x**3).mean()
    (gradient,) = torch.autograd.grad(loss, x)
    expected = start.double() - 0.1 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
    generator = torch.Generator().manual_seed(4)
    seen = []

    def penalty(shown, logits):
        seen.append(logits.shape)
        return 0.25 * (shown**3).mean()

    made = invert(network_like(model), labels, (1, 8, 8), generator, settings, penalty=penalty)
    assert seen == [(3, 3)]
    sure = gradient.abs() > 1e-4  # the sign of a tiny gradient is single precision's affair
    assert sure.double().mean() > 0.95
    assert (made.double() - expected).abs()[sure].max() < 1e-4


def network_like(model):
    """The same weights in single precision."""
    copy = network()
    copy.load_state_dict(model.state_dict())
    return copy


def test_step_sizes_warm_up_and_fall_along_a_cosine():
    settings = Inversion(steps=10, lr=0.2, warmup=4, cosine=True)
    assert [settings.lr_at(s) for s in range(4)] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert [settings.lr_at(s) for s in (4, 7, 10)] == pytest.approx([0.2, 0.1, 0.0], abs=1e-12)
    assert Inversion(steps=10, lr=0.3).lr_at(9) == 0.3


def test_best_images_are_a_copy_from_the_step_with_the_lowest_loss():
    """Huge steps: the loss goes up after the start, and the last images are not the best."""
    model, labels = network(), torch.arange(3)
    losses, shown = [], []

    def note(x, logits):
        losses.append(float(nn.functional.cross_entropy(logits.detach(), labels)))
        shown.append(x.detach().clone())
        return torch.zeros(())

    settings = {"steps": 12, "lr": 3.0, "statistics": 0.0, "total_variation": 0.0, "jitter": 0}

    def run(keep, penalty=None):
        generator = torch.Generator().manual_seed(1)
        return invert(model, labels, (1, 8, 8), generator, Inversion(**settings, keep_best=keep), penalty=penalty)

    best = run(True, note)
    lowest = min(range(12), key=losses.__getitem__)
    assert torch.equal(best, shown[lowest])
    assert not torch.equal(best, run(False))


def test_flip_mirrors_about_half_of_the_steps():
    asymmetric = torch.zeros(1, 1, 8, 8)
    asymmetric[..., :4] = 1.0
    seen = []

    def note(x, _):
        seen.append(float(x.detach()[..., :4].mean() - x.detach()[..., 4:].mean()))
        return -1e-6 * (x * asymmetric).sum()

    settings = Inversion(steps=40, lr=0.0, jitter=0, flip=True)
    invert(network(), torch.tensor([0]), (1, 8, 8), torch.Generator().manual_seed(2), settings, penalty=note)
    sides = {round(s, 4) for s in seen}
    assert len(sides) == 2
    assert sum(sides) == pytest.approx(0.0, abs=1e-4)
    assert 10 <= sum(s > 0 for s in seen) <= 30


def test_frozen_gives_the_model_back_as_it_was_even_after_an_error():
    model = network()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    inside = []

    def leave():
        with frozen(model):
            inside.extend([m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()])
            raise RuntimeError("out")

    with pytest.raises(RuntimeError, match="out"):
        leave()
    assert len(inside) == 12
    assert not any(inside)
    assert [m.training for m in model.children()] == [True, False, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]


def test_who_has_batch_statistics():
    assert has_batch_norm(network())
    assert not has_batch_norm(network(norm=False))
    assert not has_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))

    def reason(model, **options):
        label = f"{model}({', '.join(options)})" if options else model
        return no_statistics(Facts("digits", label, 10, (1, 28, 28), (0,), "class", model_options=options))

    before = torch.get_rng_state()
    assert reason("lenet5") == "lenet5 has no batch norm with statistics to match"
    assert reason("allcnn", width=4) is None
    assert reason("resnet8") is None
    assert reason("vgg8", width=4) is None
    assert "no batch norm" in reason("vgg8", batch_norm=False)
    assert reason("somebody's own") is None
    assert torch.equal(torch.get_rng_state(), before)
