"""Joining a cluster, what fits on it, which device, and what every node must see."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from raybench.cluster import probes, session
from raybench.cluster.session import Session
from raybench.cluster.trial_actor import node_name
from raybench.errors import UserError


@pytest.mark.parametrize(
    ("node", "wanted", "fits"),
    [
        ({"CPU": 8.0, "GPU": 2.0}, {"cpu": 1, "gpu": 0.25}, 8),
        ({"CPU": 6.0, "GPU": 2.0}, {"cpu": 1, "gpu": 0.25}, 6),
        ({"CPU": 8.0, "GPU": 2.0}, {"cpu": 1, "gpu": 0.4}, 4),  # two shares on each device, not five on both
        ({"CPU": 8.0, "GPU": 1.0}, {"cpu": 0.1, "gpu": 0.1}, 10),
        ({"CPU": 8.0, "GPU": 4.0}, {"cpu": 1, "gpu": 2.0}, 2),
        ({"CPU": 8.0, "GPU": 1.0}, {"cpu": 1, "gpu": 2.0}, 0),
        ({"CPU": 4.0}, {"cpu": 3, "gpu": 0.0}, 1),
        ({"CPU": 0.0, "GPU": 1.0}, {"cpu": 1, "gpu": 0.0}, 0),
        ({"CPU": 0.3}, {"cpu": 0.1, "gpu": 0.0}, 3),
        ({"CPU": 8.0, "big_disk": 2.0}, {"cpu": 1, "gpu": 0.0, "big_disk": 1}, 2),
        ({"CPU": 8.0}, {"cpu": 1, "gpu": 0.0, "big_disk": 1}, 0),
        (
            {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0},
            {"cpu": 1, "gpu": 0.5, "accelerator_type:H100": 0.001},
            4,
        ),
        (
            {"CPU": 8.0, "GPU": 2.0, "accelerator_type:T4": 1.0},
            {"cpu": 1, "gpu": 0.5, "accelerator_type:H100": 0.001},
            0,
        ),
    ],
)
def test_trials_per_node(node, wanted, fits):
    assert session.fits(node, wanted) == fits


def test_fit_and_cap(local_ray, capped):
    fit = local_ray.fit({"cpu": 1, "gpu": 0.25})
    assert (fit.resources, fit.slots, fit.note) == ({"cpu": 1.0, "gpu": 0.25}, 8, "")
    assert capped(3).fit({"cpu": 1, "gpu": 0.25}).slots == 3
    assert capped(3).fit({"cpu": 4}).slots == 2
    assert local_ray.resources() == {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"cpu": 9}, "fit on one node, got resources {cpu: 9, gpu: 0} and nodes with 8 CPUs, 2 GPUs"),
        ({"cpu": 1, "gpu": 3}, "fit on one node"),
        (
            {"cpu": 1, "gpu": 0.5, "accelerator_type:H100": 0.001},
            "got resources {cpu: 1, gpu: 0.5, accelerator_type:H100: 0.001} and nodes with 8 CPUs, 2 GPUs; ask",
        ),
        ({"cpu": 0, "gpu": 0.5}, "cpu above 0"),
        ({"cpu": 1, "gpu": 1.5}, "whole number, got 1.5"),
    ],
)
def test_what_fits_nowhere_is_one_line(local_ray, resources, said):
    with pytest.raises(UserError) as caught:
        local_ray.fit(resources)
    assert said in str(caught.value)


def test_no_gpu_drops_the_share_and_says_so(local_ray, monkeypatch):
    monkeypatch.setattr(Session, "resources", lambda self: {"CPU": 8.0, "GPU": 0.0})
    fit = local_ray.fit({"cpu": 1, "gpu": 0.25})
    assert fit.resources == {"cpu": 1.0, "gpu": 0.0}
    assert "no GPU" in fit.note
    assert local_ray.device_type("auto", {"cpu": 1, "gpu": 0.25}) == "cpu"
    with pytest.raises(UserError, match="device cuda needs a cluster with GPUs"):
        local_ray.device_type("cuda", {"cpu": 1, "gpu": 0.25})


def test_an_autoscaling_cluster_counts_what_it_may_grow_to(local_ray, monkeypatch):
    monkeypatch.setattr(session, "_grown", lambda: {"CPU": 64, "GPU": 16})
    assert local_ray.resources() == {"CPU": 64.0, "GPU": 16.0}
    assert local_ray.fit({"cpu": 16}).slots == 4


def test_device_needs_a_share_and_a_torch_that_sees_it(local_ray, monkeypatch):
    share = {"cpu": 1, "gpu": 0.25}
    assert local_ray.device_type("auto", {"cpu": 1}) == "cpu"
    assert local_ray.device_type("cpu", share) == "cpu"
    with pytest.raises(UserError, match=r"set resources\.gpu"):
        local_ray.device_type("cuda", {"cpu": 1})
    monkeypatch.setattr(session, "probe_cuda", lambda gpu, wait_s, custom: False)
    assert local_ray.device_type("auto", share) == "cpu"
    with pytest.raises(UserError, match="cannot; install one with CUDA"):
        local_ray.device_type("cuda", share)
    waited = []
    monkeypatch.setattr(session, "probe_cuda", lambda gpu, wait_s, custom: waited.append(wait_s) or True)
    assert local_ray.device_type("auto", share) == "cuda"
    monkeypatch.setattr(session, "_grown", lambda: {"CPU": 64, "GPU": 16})
    assert local_ray.device_type("auto", share) == "cuda"
    assert waited == [60.0, 900.0]  # a cloud's first GPU node takes minutes


def test_the_probe_asks_a_process_that_holds_the_share(local_ray):
    import torch

    seen = probes.probe_cuda(0.25)
    assert seen == (torch.cuda.is_available() and torch.cuda.device_count() >= 1)


def test_shared_folders_pass_and_leave_nothing(local_ray, tmp_path):
    folders = [tmp_path / "results", tmp_path / "store"]
    probes.check_nodes([local_ray.node_id], *map(str, folders))
    assert [path for folder in folders for path in folder.rglob("*") if path.is_file()] == []


def test_a_bucket_that_a_node_cannot_use_says_why(local_ray, s3, tmp_path):
    """The workers of this session were started without keys."""
    with pytest.raises(UserError) as caught:
        probes.check_nodes([local_ray.node_id], str(tmp_path / "results"), "s3://bench/store")
    message = str(caught.value)
    assert message.startswith(f"the store must be usable from all nodes, on node {node_name(local_ray.node_id)}: s3://")
    assert "credentials and endpoint in the environment" in message
    assert "--store" in message
    assert s3.objects("bench") == {}


def test_a_folder_that_a_node_does_not_see_is_one_line(local_ray, tmp_path, monkeypatch):
    """``/proc/self/cwd`` is a path that means another folder in another process, as an unshared disk does."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        probes.check_nodes([local_ray.node_id], str(tmp_path / "results"), "/proc/self/cwd/store")
    assert "store folder must be shared by all nodes, got /proc/self/cwd/store" in str(caught.value)
    assert node_name(local_ray.node_id) in str(caught.value)
    assert "--store" in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_node_with_other_versions_is_one_line(local_ray, tmp_path, monkeypatch):
    here = probes.versions()
    monkeypatch.setattr(probes, "versions", lambda: {**here, "torch": "1.0"})
    with pytest.raises(UserError, match=r"same versions, node .* has torch .* \(here 1\.0\)"):
        probes.check_nodes([local_ray.node_id], str(tmp_path), str(tmp_path))


def test_a_driver_node_alone_is_not_asked(local_ray, monkeypatch):
    monkeypatch.setattr(session, "check_nodes", lambda *arguments: pytest.fail("asked"))
    local_ray.check("/nowhere", "/nowhere")


def test_slots_must_be_positive(local_ray):
    with pytest.raises(UserError, match="--slots must be at least 1, got 0"):
        Session.start(slots=0)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265"])
def test_clients_from_outside_are_sent_to_jobs(address):
    with pytest.raises(UserError, match="ray job submit"):
        session._join(address)


ALONE = """
import sys
from raybench.cluster.session import Session
from raybench.errors import UserError
try:
    session = Session.connect(sys.argv[1]) if len(sys.argv) > 1 else Session.start(slots=1)
except UserError as error:
    sys.exit(f"said: {error}")
print(session.local, session.fit({"cpu": 1}).slots)
session.close()
"""


def alone(home, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(home), **variables}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_local_ray_is_silent_and_keeps_its_token_to_itself(tmp_path):
    done = alone(tmp_path)
    assert (done.stdout, done.stderr) == ("True 1\n", "")
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


def test_no_cluster_there_is_one_line(tmp_path):
    done = alone(tmp_path, "127.0.0.1:1")
    assert done.returncode == 1
    assert "said: --address must lead to a running Ray cluster, got 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ray_that_does_not_start_is_one_line(tmp_path):
    """Ray's folder for sockets and logs lies under a file."""
    (tmp_path / "file").write_text("")
    done = alone(tmp_path, RAY_TMPDIR=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "said: Ray must start on this machine, it did not (" in done.stderr
    assert "--serial" in done.stderr
    assert "Traceback" not in done.stderr
