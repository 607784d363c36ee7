"""What a warm process does with the devices it is given, without Ray and without a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from raybench.cluster import trial_actor
from raybench.cluster.trial_actor import Kit, TrialRunner
from raybench.workshop import Settings


@pytest.fixture
def runner_on(monkeypatch, tmp_path):
    """A runner in a process that Ray gave these GPUs; and the memory fractions that it sets."""
    fractions = []

    def runner_on(ids, gpu, cuda):
        monkeypatch.setattr(trial_actor.ray, "get_gpu_ids", lambda: ids)
        monkeypatch.setattr(trial_actor, "node_name", lambda: "node7")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: fractions.append(part))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        settings = Settings(experiment="x", store=str(tmp_path), metrics=())
        return TrialRunner(Kit(settings, None, None, gpu, exclusive=gpu == 1)), fractions

    return runner_on


@pytest.fixture
def trial(plan_of):
    problem = {"dataset": "digits", "models": ["mlp"], "scenarios": [{"name": "class", "classes": [0]}]}
    plan = plan_of({"name": "x", "problems": [problem], "methods": ["original"]}, device_types=["cuda"])
    return plan.references()[0].spec


def test_a_share_of_a_gpu_is_a_share_of_its_memory(runner_on, trial):
    runner, fractions = runner_on([1], 0.25, cuda=True)
    shop = runner._workshop()
    runner._limit(trial, shop)
    left = 0.25 - 0.5 / 16  # of 16 GiB: torch does not count the half GiB that CUDA itself takes
    shop.footprints.note(trial, 2**30, 2**28)
    runner._limit(trial, shop)
    assert fractions == [left, 0.25 - 0.25 / 16]  # measured, it was less
    placement = shop.placement
    assert (placement.device_ids, placement.node, placement.exclusive) == ("1", "node7", False)
    assert placement.ray_version == trial_actor.ray.__version__


def test_a_whole_gpu_or_a_pretended_one_is_not_limited(runner_on, trial):
    for gpu, cuda in ((1.0, True), (0.25, False)):
        runner, fractions = runner_on([0], gpu, cuda)
        shop = runner._workshop()
        runner._limit(trial, shop)
        assert (shop.placement.exclusive, shop.placement.device_ids, fractions) == (gpu == 1, "0", [])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_gpus_that_were_not_given_are_hidden(runner_on):
    runner, _ = runner_on([], 0.0, cuda=True)
    assert runner._workshop().placement.device_ids == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_names_of_nodes(monkeypatch):
    node = {"NodeID": "a", "NodeManagerHostname": "host1", "NodeManagerAddress": "10.0.0.1"}
    for named, expected in (("10.0.0.1", "host1"), ("", "host1"), ("alpha", "alpha")):
        monkeypatch.setattr(
            trial_actor, "ray", SimpleNamespace(nodes=lambda named=named: [{**node, "NodeName": named}])
        )
        assert trial_actor.node_name("a") == expected


def test_a_process_with_a_broken_device_takes_no_more_trials(runner_on, monkeypatch):
    """An error left on the device by a kernel fails whatever comes next in the process."""
    runner, _ = runner_on([0], 1.0, cuda=True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    runner._tidy()
    assert not runner._broken

    def broken():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    runner._tidy()
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit):
        runner.run({})
