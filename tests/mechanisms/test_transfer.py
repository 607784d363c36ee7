import copy

import pytest
import torch

from raybench.mechanisms.transfer import SHOWN, Lesson, Transfer, run_transfer
from raybench.methods.gkt import GktHparams
from raybench.task import Stop
from raybench.testing import make_task

SMALL = {"batch_size": 8, "generator_width": 4, "latent_dim": 4, "student_steps": 3, "proxies": 4, "inversion_steps": 2}


class Counted(Transfer):
    """Learns nothing in particular; notes what it is asked for. ``refuse``: lessons to refuse from the start."""

    refuse = 0

    def optimisers(self):
        self.asked = []
        self.seen = []
        return torch.optim.SGD(self.student.parameters(), lr=0.01), torch.optim.SGD(self.generator.parameters(), lr=0.0)

    def generator_loss(self, images):
        self.asked.append("generator")
        assert not any(p.requires_grad for p in self.student.parameters())
        return self.student(images).square().mean()

    def lesson(self, images):
        self.asked.append("lesson")
        assert not torch.is_grad_enabled()
        gate = torch.full((len(images),), self.asked.count("lesson") > self.refuse)
        return self.keep(images, self.teacher(images), gate, [images[:, 0]])

    def student_loss(self, lesson):
        self.asked.append("student")
        self.seen.append(lesson)
        return self.student(lesson.images).square().mean()


def make(cls=Counted, task=None, **overrides):
    task = task or make_task("gkt", model="mlp", samples=300)
    return cls(
        task, GktHparams(**{**SMALL, "pseudo_batches": 4, "check_every": 2, "stop_on_proxies": False, **overrides})
    )


def test_a_round_is_generator_steps_then_student_steps_on_one_z():
    loop = make(generator_steps=2)
    lesson = loop.round()
    assert loop.asked == ["generator"] * 2 + ["lesson"] + ["student"] * 3
    assert all(seen is lesson for seen in loop.seen)
    assert isinstance(lesson, Lesson)
    assert lesson.stages[0].shape == (8, 28, 28)
    assert (loop.drawn, loop.taught) == (8, 8)


def test_fresh_noise_makes_a_lesson_per_step():
    class Fresh(Counted):
        fresh_noise = True

    loop = make(Fresh)
    last = loop.round()
    assert loop.asked == ["generator"] + ["lesson", "student"] * 3
    assert loop.seen[-1] is last
    assert not torch.equal(loop.seen[0].images, loop.seen[1].images)


def test_a_refused_batch_is_drawn_anew_and_counts_as_drawn():
    class Picky(Counted):
        refuse = 2

    loop = make(Picky)
    assert loop.round() is not None
    assert loop.asked.count("lesson") == 3
    assert (loop.drawn, loop.taught) == (24, 8)


def test_shut_gates_end_the_run():
    class Never(Counted):
        refuse = 10**9

    loop = make(Never, max_redraws=5)
    student = run_transfer(loop)
    assert student is loop.student
    assert loop.asked.count("lesson") == 5
    assert loop.task.reported.stop_reason == "gates_shut"
    assert loop.task.reported.scalars == {"pseudo_batches": 1.0, "share_taught": 0.0}


def test_run_to_the_end_reports_and_checkpoints():
    task = make_task("gkt", model="mlp", samples=300)
    met = []
    task._on_checkpoint = lambda model, step, scalars: met.append((step, model.training, dict(scalars)))
    loop = make(task=task, pseudo_batches=5)
    assert run_transfer(loop) is loop.student
    assert [(step, training) for step, training, _ in met] == [(2, False), (4, False), (5, False)]
    assert met[-1][2] == {"share_taught": 1.0}
    assert task.reported.stop_reason == "max_steps"
    assert task.reported.images["generated"].shape == (8, 1, 28, 28)
    assert "proxies" not in task.reported.images


@pytest.mark.parametrize("proxies", [4, 200])
def test_grids_are_pixels_and_small(proxies):
    task = make_task("gkt", model="mlp", samples=300)
    run_transfer(make(task=task, stop_on_proxies=True, proxies=proxies, batch_size=100, pseudo_batches=1))
    assert set(task.reported.images) == {"generated", "proxies"}
    assert task.reported.images["generated"].shape == (SHOWN, 1, 28, 28)
    assert task.reported.images["proxies"].shape[1:] == (1, 28, 28)
    assert len(task.reported.images["proxies"]) <= SHOWN + 3
    for pixels in task.reported.images.values():
        assert pixels.min() >= 0.0
        assert pixels.max() <= 1.0


class Remembers(Counted):
    """From round 3 on the student knows the forget class: the head's bias says class 0 whatever comes."""

    def begin_round(self):
        super().begin_round()
        with torch.no_grad():
            self.student.head.bias[0] = 100.0 if self.rounds >= 3 else -100.0


def watch(**overrides):
    task, met = make_task("gkt", model="mlp", samples=300), []

    def note(model, step, scalars):
        met.append((step, dict(scalars), copy.deepcopy(model.state_dict())))

    task._on_checkpoint = note
    student = run_transfer(make(Remembers, task=task, check_every=1, pseudo_batches=9, proxies=16, **overrides))
    return student, task, met


def test_proxies_stop_the_run_and_the_curve_shows_where_and_which_student_was_kept():
    student, task, met = watch(stop_on_proxies=True)
    assert [step for step, _, _ in met] == [1, 2, 3, 4, 5]  # three violations in a row: rounds 3, 4 and 5
    assert [scalars["proxy_forget_accuracy"] for _, scalars, _ in met] == [0.0, 0.0, 1.0, 1.0, 1.0]
    kept = int(task.reported.scalars["kept_pseudo_batch"])
    assert kept in (1, 2)
    assert met[-1][1]["kept_pseudo_batch"] == kept
    assert task.reported.scalars["proxy_forget_accuracy"] == 0.0
    assert task.reported.stop_reason == "proxies"
    assert all(torch.equal(v, met[kept - 1][2][k]) for k, v in student.state_dict().items())


def test_the_whole_curve_without_the_rule_begins_with_the_curve_that_it_cut_short():
    """So a run with the rule off shows what lies behind the data-free stopping point of its twin."""
    _, _, short = watch(stop_on_proxies=True)
    _, _, whole = watch(stop_on_proxies=False)
    assert [step for step, _, _ in whole] == list(range(1, 10))
    for (_, _, a), (_, _, b) in zip(short, whole, strict=False):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_stopping_rule_of_the_spec_ends_it_with_everything_reported():
    task = make_task("gkt", model="mlp", samples=300)
    task._stop = lambda model: True
    loop = make(task=task, stop_on_proxies=True)
    with pytest.raises(Stop) as stopped:
        run_transfer(loop)
    assert stopped.value.model is loop.student
    assert task.reported.scalars["pseudo_batches"] == 2.0
    assert "kept_pseudo_batch" in task.reported.scalars
    assert "generated" in task.reported.images


def test_gradients_are_clipped_only_where_a_norm_is_given():
    for clip in (1e-6, None):
        loop = make()
        loop.hp = copy.copy(loop.hp)
        object.__setattr__(loop.hp, "clip_norm", clip)
        loss = 1e3 * loop.student(torch.ones(2, 1, 28, 28)).square().sum()
        loop._descend(loss, loop.student, loop.student_optimiser)
        norm = torch.cat([p.grad.flatten() for p in loop.student.parameters()]).norm()
        assert (norm <= 1.001e-6) if clip else (norm > 1.0)
