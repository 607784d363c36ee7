"""``task.once``: a hit cannot be told from a miss, in values, in random state, in cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench import passes
from raybench.content_store import ContentStore
from raybench.once import MEMORY_ENTRIES, OnceMemory, SharedOnce
from raybench.passes import Clock, PassCounter
from raybench.seeding import seeded_globals

Result = Tensor | dict[str, Tensor]


class Bench:
    """One trial's ``once`` with what it touches."""

    def __init__(
        self,
        store: ContentStore | None,
        *,
        memory: OnceMemory | None = None,
        timing: str = "search",
        unlearn_seed: int = 0,
        identity: Mapping[str, Any] | None = None,
        lease: Callable[[str], contextlib.AbstractContextManager[None]] | None = None,
    ) -> None:
        with seeded_globals(0):
            self.model = nn.Linear(3, 2)
        self.generator = torch.Generator().manual_seed(11)
        self.clock = Clock(torch.device("cpu"))
        self.passes = PassCounter(self.model, (3,))
        self.passes.track(self.model)
        self.computed = 0
        self.once = SharedOnce(
            store=store,
            memory=OnceMemory() if memory is None else memory,
            identity=identity or {"method": "m"},
            timing=timing,
            unlearn_seed=unlearn_seed,
            generator=self.generator,
            clock=self.clock,
            passes=self.passes,
            lease=lease or (lambda key: contextlib.nullcontext()),
        )
        self.clock.start()

    def ask(self, compute: Callable[[torch.Generator], Result], name: str = "v", **inputs: Any) -> dict[str, Tensor]:
        def counted(generator: torch.Generator) -> Result:
            self.computed += 1
            return compute(generator)

        return self.once(name, counted, inputs)


def fixed(_: torch.Generator) -> Tensor:
    return torch.arange(6.0).view(2, 3) / 7


def drawn(generator: torch.Generator) -> Tensor:
    return torch.rand(4, generator=generator)


def global_draw(_: torch.Generator) -> Tensor:
    return torch.rand(4)  # as dropout or an initialiser does


COMPUTES = {"fixed": fixed, "drawn": drawn, "global": global_draw}


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


@pytest.fixture(autouse=True)
def global_state_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", COMPUTES)
def test_miss_hit_and_no_store_give_one_value_and_one_random_state(store: ContentStore, kind: str) -> None:
    memory = OnceMemory()
    ways = {
        "miss": Bench(store, memory=memory),
        "hit in the store": Bench(store),
        "hit in memory": Bench(store, memory=memory),
        "again": Bench(store, memory=memory),
        "no store": Bench(None),
    }
    values, after, states = [], [], []
    for position, bench in enumerate(ways.values()):
        with seeded_globals(position):  # the global state is elsewhere every time
            before = torch.get_rng_state()
            values.append(bench.ask(COMPUTES[kind])["value"])
            assert torch.equal(torch.get_rng_state(), before)
        states.append(bench.generator.get_state())
        after.append(torch.rand(3, generator=bench.generator))
    assert [bench.computed for bench in ways.values()] == [1, 0, 0, 0, 1]
    assert all(torch.equal(v, values[0]) for v in values)
    assert all(torch.equal(a, after[0]) for a in after)
    untouched = torch.Generator().manual_seed(11)
    assert torch.equal(states[0], untouched.get_state())


@pytest.mark.parametrize("kind", COMPUTES)
def test_random_values_belong_to_an_unlearn_seed_and_others_are_shared(store: ContentStore, kind: str) -> None:
    benches = [Bench(store, unlearn_seed=seed) for seed in (0, 1, 0, 1)]
    values = [bench.ask(COMPUTES[kind])["value"] for bench in benches]
    random = kind != "fixed"
    assert [bench.computed for bench in benches] == ([1, 1, 0, 0] if random else [1, 0, 0, 0])
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], values[3])
    assert torch.equal(values[0], values[1]) != random


@pytest.mark.parametrize(
    "other",
    [
        {"name": "w"},
        {"inputs": {"samples": 6}},
        {"identity": {"method": "n"}},
        {"timing": "final"},
    ],
)
def test_whatever_it_depends_on_makes_another_value(store: ContentStore, other: dict[str, Any]) -> None:
    Bench(store).ask(fixed, samples=5)
    same, different = Bench(store), Bench(store, **{k: v for k, v in other.items() if k in ("identity", "timing")})
    same.ask(fixed, samples=5)
    different.ask(fixed, other.get("name", "v"), **other.get("inputs", {"samples": 5}))
    assert (same.computed, different.computed) == (0, 1)


def test_search_and_final_values_are_equal_though_timed_apart(store: ContentStore) -> None:
    values = [Bench(store, timing=timing).ask(drawn)["value"] for timing in ("search", "final")]
    assert torch.equal(*values)
    assert Bench(store, timing="final").ask(drawn)["value"].tolist() == values[0].tolist()


def test_what_is_handed_out_is_a_copy(store: ContentStore) -> None:
    memory = OnceMemory()
    expected = fixed(torch.Generator())
    for _ in range(4):
        value = Bench(store, memory=memory).ask(fixed)["value"]
        assert torch.equal(value, expected)
        value.zero_()
    leaf = torch.ones(2, requires_grad=True)
    bench = Bench(store)
    value = bench.ask(lambda _: {"a": leaf * 2, "b": leaf}, "leaf")
    assert not value["a"].requires_grad
    value["b"].zero_()
    assert leaf.tolist() == [1.0, 1.0]


def test_hits_have_the_layout_of_misses(store: ContentStore) -> None:
    """Another memory format could take another kernel, whose last bit may differ."""

    def channels_last(_: torch.Generator) -> dict[str, Tensor]:
        x = torch.arange(24.0).view(1, 2, 3, 4)
        return {"x": x.contiguous(memory_format=torch.channels_last), "t": x[0, 0].T, "b": torch.tensor([True])}

    miss, hit, alone = (Bench(where).ask(channels_last) for where in (store, store, None))
    for name, value in miss.items():
        assert torch.equal(value, hit[name])
        assert value.dtype == hit[name].dtype
        assert value.stride() == hit[name].stride() == alone[name].stride()


@pytest.fixture
def clock_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that moves only when told."""
    now = [0.0]

    class Scripted:
        perf_counter = staticmethod(lambda: now[0])
        process_time = staticmethod(lambda: now[0] / 2)

    monkeypatch.setattr(passes, "time", Scripted)

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_every_user_pays_what_the_first_one_paid(store: ContentStore, clock_hand: Callable[[float], None]) -> None:
    @contextlib.contextmanager
    def slow_lease(_: str) -> Iterator[None]:
        clock_hand(1000.0)  # waiting is off the clock
        yield

    def run(bench: Bench) -> tuple[float, ...]:
        def compute(generator: torch.Generator) -> Tensor:
            clock_hand(8.0)
            bench.model(torch.ones(5, 3)).sum().backward()
            return drawn(generator)

        clock_hand(1.0)
        bench.ask(compute)
        assert bench.clock.running
        clock_hand(2.0)
        bench.clock.stop()
        clock = bench.clock
        return clock.wall_s, clock.cpu_s, clock.shared_s, bench.passes.forward, bench.passes.backward

    memory = OnceMemory()
    computed = []
    trials = [(store, {"memory": memory, "lease": slow_lease}), (store, {}), (store, {"memory": memory}), (None, {})]
    for where, options in trials:
        bench = Bench(where, **options)  # type: ignore[arg-type]
        assert run(bench) == (11.0, 5.5, 8.0, 5.0, 5.0)
        computed.append(bench.computed)
    assert computed == [1, 0, 0, 1]


def test_a_clock_that_stands_still_stays_so(store: ContentStore) -> None:
    for _ in range(2):
        bench = Bench(store)
        bench.clock.stop()
        bench.ask(fixed)
        assert not bench.clock.running


def test_once_inside_once_is_part_of_it(store: ContentStore, clock_hand: Callable[[float], None]) -> None:
    """Charged once, and random if the inner value is."""

    def run(seed: int, where: ContentStore | None = store, inner: Any = drawn) -> tuple[list[float], float, float]:
        bench = Bench(where, unlearn_seed=seed)

        def inside(generator: torch.Generator) -> Tensor:
            clock_hand(3.0)
            return inner(generator)

        def outside(_: torch.Generator) -> Tensor:
            clock_hand(4.0)
            return bench.once("inner", inside, {"of": inner.__name__})["value"] * 2

        value = bench.once("outer", outside, {"of": inner.__name__})["value"]
        bench.clock.stop()
        return value.tolist(), bench.clock.wall_s, bench.clock.shared_s

    first = run(0)
    assert first[1:] == (7.0, 7.0)
    assert run(0) == first == run(0, None)
    other = run(1)
    assert other[0] != first[0]
    assert other[1:] == (7.0, 7.0)
    assert run(0, inner=fixed) == run(1, inner=fixed)


def test_the_lease_is_taken_for_a_miss_only_and_looks_again(store: ContentStore) -> None:
    leased: list[str] = []

    @contextlib.contextmanager
    def lease(key: str) -> Iterator[None]:
        leased.append(key)
        Bench(store).ask(fixed)  # while we waited, the holder before us finished
        yield

    bench = Bench(store, lease=lease)
    bench.ask(fixed)
    assert (bench.computed, len(leased)) == (0, 1)
    bench.ask(fixed)
    assert len(leased) == 1


def test_damaged_values_are_made_again(store: ContentStore) -> None:
    expected = Bench(store).ask(drawn)["value"]
    files = Path(str(store.folder)).rglob("*.safetensors")
    largest = max(files, key=lambda file: file.stat().st_size)  # the other is a marker
    largest.write_bytes(largest.read_bytes()[:-1])
    bench = Bench(store)
    assert torch.equal(bench.ask(drawn)["value"], expected)
    assert bench.computed == 1
    again = Bench(store)
    again.ask(drawn)
    assert again.computed == 0


def test_an_exception_leaves_nothing_behind(store: ContentStore) -> None:
    bench = Bench(store)

    def broken(_: torch.Generator) -> Tensor:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        bench.ask(broken)
    assert bench.clock.running
    assert torch.equal(bench.ask(fixed)["value"], fixed(bench.generator))


def test_memory_is_bounded(store: ContentStore) -> None:
    memory = OnceMemory()
    bench = Bench(store, memory=memory)
    for round_ in range(2):
        for i in range(MEMORY_ENTRIES + 3):
            bench.ask(fixed, number=i)
        assert bench.computed == MEMORY_ENTRIES + 3
        assert len(memory) <= MEMORY_ENTRIES, round_


def test_real_seconds_are_within_a_fifth(store: ContentStore) -> None:
    """A method hidden wholly in ``once`` shows the same seconds on hit and miss."""

    def busy(_: torch.Generator) -> Tensor:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        return torch.zeros(1)

    seconds = []
    for _ in range(3):
        bench = Bench(store)
        bench.ask(busy)
        bench.clock.stop()
        seconds.append(bench.clock.wall_s)
    assert seconds[0] >= 0.3
    assert max(seconds) < 1.2 * min(seconds)
