"""Sample passes against torch's own FLOP counter, and a clock against scripted time."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from raybench import passes
from raybench.passes import Clock, PassCounter, TimeLimit, count_functional, count_products, warm_up
from raybench.registry import MODELS
from raybench.seeding import seeded_globals

NETWORKS = [
    ("lenet5", (1, 28, 28), {}),
    ("resnet8", (3, 16, 16), {}),
    ("allcnn", (3, 12, 12), {"width": 8}),
    ("mlp", (1, 8, 8), {"hidden": [12, 7]}),
]
SAMPLES = 3


@pytest.fixture(params=NETWORKS, ids=[n for n, _, _ in NETWORKS])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, PassCounter]:
    name, shape, options = request.param
    with seeded_globals(0):
        model = MODELS[name].fn(5, shape, **options)
    counter = PassCounter(model, shape)
    counter.track(model)
    return model, torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0)), counter


def step(model: nn.Module, images: Tensor) -> None:
    F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64)).backward()


def assert_agrees(counter: PassCounter, flops: FlopCounterMode) -> None:
    assert counter.forward_flops + counter.backward_flops == pytest.approx(flops.get_total_flops(), rel=1e-9)


def test_a_training_step_is_one_pass_a_sample(network: tuple[nn.Module, Tensor, PassCounter]) -> None:
    model, images, counter = network
    assert (counter.forward, counter.backward) == (0.0, 0.0)
    model.train()
    with FlopCounterMode(display=False) as flops:
        step(model, images)
        step(model, images[:1].expand(2, -1, -1, -1))
    assert_agrees(counter, flops)
    assert counter.forward == pytest.approx(SAMPLES + 2)
    assert counter.backward == pytest.approx(SAMPLES + 2)


@pytest.mark.parametrize("trained", ["head", "all but the first stage", "first stage", "biases"])
def test_frozen_parts_cost_what_autograd_spends(network: tuple[nn.Module, Tensor, PassCounter], trained: str) -> None:
    model, images, counter = network
    first = set(model.stages()[0].parameters())  # type: ignore[operator]
    for name, p in model.named_parameters():
        p.requires_grad_(
            {
                "head": name.startswith("head"),
                "all but the first stage": p not in first,
                "first stage": p in first,
                "biases": name.endswith("bias"),
            }[trained]
        )
    with FlopCounterMode(display=False) as flops:
        step(model, images)
    assert_agrees(counter, flops)
    assert counter.forward == pytest.approx(SAMPLES)
    assert 0 < counter.backward < SAMPLES


def test_gradients_of_images_through_frozen_weights(network: tuple[nn.Module, Tensor, PassCounter]) -> None:
    model, images, counter = network
    model.requires_grad_(False)
    wanted = images.clone().requires_grad_(True)
    with FlopCounterMode(display=False) as flops:
        model(wanted).sum().backward()
    assert wanted.grad is not None
    assert_agrees(counter, flops)
    assert counter.backward > 0


def test_gradients_of_images_and_weights(network: tuple[nn.Module, Tensor, PassCounter]) -> None:
    model, images, counter = network
    with FlopCounterMode(display=False) as flops:
        step(model, images.clone().requires_grad_(True))
    assert_agrees(counter, flops)
    assert counter.backward > SAMPLES  # the unit has no gradient of the images


def test_forward_only(network: tuple[nn.Module, Tensor, PassCounter]) -> None:
    model, images, counter = network
    with FlopCounterMode(display=False) as flops:
        with torch.no_grad():
            model(images)
        with torch.inference_mode():
            model(images)
        model(images)  # with a graph that nobody walks
        model.eval().requires_grad_(False)
        model(images)
    assert_agrees(counter, flops)
    assert (counter.forward, counter.backward) == (pytest.approx(4 * SAMPLES), 0.0)


def test_a_retained_graph_is_walked_twice(network: tuple[nn.Module, Tensor, PassCounter]) -> None:
    model, images, counter = network
    with FlopCounterMode(display=False) as flops:
        value = model(images).sum()
        value.backward(retain_graph=True)
        value.backward()
    assert_agrees(counter, flops)
    assert counter.backward == pytest.approx(2 * SAMPLES)


def test_copies_go_on_counting_into_one_account(network: tuple[nn.Module, Tensor, PassCounter]) -> None:
    model, images, counter = network
    copied = copy.deepcopy(copy.deepcopy(model))
    with FlopCounterMode(display=False) as flops:
        step(copied, images)
        step(model, images)
    assert_agrees(counter, flops)
    counter.track(copied)  # tracked already: counts once
    counter.track(model)
    with torch.no_grad():
        copied(images)
    assert counter.forward == pytest.approx(3 * SAMPLES)


def test_the_unit_leaves_the_model_alone() -> None:
    model = MODELS["lenet5"].fn(5, (1, 28, 28)).train()
    model.head.requires_grad_(False)
    counter = PassCounter(model, (1, 28, 28))
    counter.track(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    again = PassCounter(model, (1, 28, 28))  # of a model that is tracked: not that counter's passes
    assert (again.unit_forward, again.unit_backward) == (counter.unit_forward, counter.unit_backward)
    warm_up(model, torch.zeros(2, 1, 28, 28))
    assert (counter.forward, counter.backward) == (0.0, 0.0)
    assert counter.enabled
    assert model.training
    assert [p.requires_grad for p in model.head.parameters()] == [False, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_other_networks_count_in_equivalents() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))  # 2 (24 + 12) = 72 operations a sample
    counter = PassCounter(model, (4,))
    other = counter.track(nn.Linear(4, 9, bias=False))
    other(torch.zeros(5, 4)).sum().backward()
    assert counter.forward == pytest.approx(5 * 72 / 72)
    # backward: 72 for the weights of both layers and 24 for the input of the second
    assert counter.backward == pytest.approx(5 * 72 / 96)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2), (4, 15)),
        (nn.Conv3d(2, 4, (1, 2, 3), padding=1), (2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
        (nn.ConvTranspose1d(3, 2, 4), (3, 8)),
        (nn.Linear(5, 3), (7, 5)),  # a sequence
    ],
)
def test_every_counted_layer_agrees_forward(layer: nn.Module, shape: tuple[int, ...]) -> None:
    counter = PassCounter(layer, shape)
    counter.track(layer)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        layer(torch.zeros(2, *shape))
    assert counter.forward_flops == flops.get_total_flops() > 0
    assert counter.forward == 2.0


def test_functional_gradients_are_accounted_for_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    counter = PassCounter(model, (4,))
    counter.track(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, values, (x[None],))
        return out.square().sum()

    vmap(grad(loss), in_dims=(None, 0))(parameters, torch.ones(7, 4))
    assert (counter.forward, counter.backward) == (0.0, 0.0)
    count_functional(model, 7)
    assert (counter.forward, counter.backward) == (pytest.approx(7), pytest.approx(7))
    with counter.paused():
        count_functional(model, 7)
    assert counter.forward == pytest.approx(7)
    count_functional(nn.Linear(2, 2), 7)  # nobody's model: no account
    count_products(nn.Linear(2, 2), 7.0)
    count_products(model, 3.0 * counter.unit_backward)
    with counter.paused():
        count_products(model, counter.unit_backward)
    assert (counter.forward, counter.backward) == (pytest.approx(7), pytest.approx(10))
    counter.add(1.0, 2.0)
    assert (counter.forward, counter.backward) == (pytest.approx(8), pytest.approx(12))


def test_paused_passes_are_not_counted_and_pauses_nest() -> None:
    model = nn.Linear(3, 2)
    counter = PassCounter(model, (3,))
    counter.track(model)
    with counter.paused():
        with counter.paused():
            model(torch.zeros(1, 3)).sum().backward()
        model(torch.zeros(1, 3)).sum().backward()
    assert (counter.forward, counter.backward) == (0.0, 0.0)
    model(torch.zeros(1, 3)).sum().backward()
    assert (counter.forward, counter.backward) == (1.0, 1.0)


def test_a_model_without_counted_layers_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        PassCounter(Scale(), (3,))


# --- the clock ---------------------------------------------------------------------------------------------------


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """``time.now`` moves only when a test says so; process time runs at half the speed."""
    fake = types.SimpleNamespace(now=100.0)
    fake.perf_counter = lambda: fake.now
    fake.process_time = lambda: fake.now / 2
    monkeypatch.setattr(passes, "time", fake)
    return fake


def test_clock_counts_what_runs_and_nothing_else(time: types.SimpleNamespace) -> None:
    clock = Clock(torch.device("cpu"))
    time.now += 7
    assert clock.elapsed() == 0.0
    clock.start()
    time.now += 1
    clock.start()  # runs already
    time.now += 2
    assert clock.elapsed() == 3.0
    with clock.paused():
        assert not clock.running
        time.now += 50
        with clock.paused():
            time.now += 50
        time.now += 50
    assert clock.running
    time.now += 4
    clock.stop()
    time.now += 50
    clock.stop()
    assert (clock.wall_s, clock.cpu_s, clock.shared_s) == (7.0, 3.5, 0.0)
    with clock.paused():
        pass
    assert not clock.running  # a pause does not start what stood still
    clock.charge(10.0, 4.0)
    assert (clock.wall_s, clock.cpu_s, clock.shared_s) == (17.0, 7.5, 10.0)
    assert clock.elapsed() == 17.0


def test_clock_goes_on_after_an_exception_in_a_pause(time: types.SimpleNamespace) -> None:
    clock = Clock(torch.device("cpu"))
    clock.start()
    with pytest.raises(KeyError), clock.paused():
        raise KeyError
    time.now += 2
    assert clock.elapsed() == 2.0


def test_tick_raises_past_the_limit_only(time: types.SimpleNamespace) -> None:
    clock = Clock(torch.device("cpu"), limit_s=5.0)
    clock.start()
    time.now += 5
    clock.tick()
    time.now += 0.1
    with pytest.raises(TimeLimit, match="time limit of 5 s"):
        clock.tick()
    unlimited = Clock(torch.device("cpu"))
    unlimited.charge(1e9, 0.0)
    unlimited.tick()
    assert unlimited.limit_s == math.inf


def test_peak_memory_is_the_largest_of_own_and_charged() -> None:
    clock = Clock(torch.device("cpu"))
    clock.note_peak()
    assert clock.peak_memory == 0  # nothing to measure on a CPU
    clock.charge(0.0, 0.0, 7)
    clock.charge(0.0, 0.0, 5)
    assert clock.peak_memory == 7


def test_warm_up_leaves_nothing_for_the_first_trial_to_import() -> None:
    """The first optimiser of a process makes torch import seconds of code: that must be off every clock."""
    code = """
import sys, torch
from raybench.passes import warm_up
layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
before = [p.clone() for p in layer.parameters()]
warm_up(layer, torch.ones(3, 1, 2, 2))
assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters()))
loaded = set(sys.modules)
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    optimiser = kind(layer.parameters(), lr=0.1)
    layer(torch.ones(3, 1, 2, 2)).sum().backward()
    optimiser.step()
late = sorted(name for name in set(sys.modules) - loaded if name.startswith("torch"))
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
