"""``raybench doctor``: what works here - devices, Ray, data, versions - each line a check that really ran."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.folder import is_url
from raybench.places import data_root, store_folder
from raybench.registry import DATASETS, KINDS
from raybench.version import PACKAGE, __version__

OWN = ("imagefolder", "npz")  # datasets that need a path
PART = {"train_size": 2000, "test_size": 1000}  # of a dataset of image files: all of it would take long to decode
PACKAGES = ("torch", "torchvision", "ray", "optuna", "pyarrow", "pandas", "scikit-learn", "safetensors")


@dataclass(frozen=True)
class Check:
    """One line of the report. ``ok`` None: not there, and not needed."""

    name: str
    ok: bool | None
    text: str


def examine(data: str | None, address: str | None, form: str = "table") -> tuple[str, bool]:
    """The report as table or json (a list of objects), and whether everything that a run needs works."""
    checks = [
        Check("raybench", True, f"{__version__} at {PACKAGE}"),
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        *(_version(name) for name in PACKAGES),
        _check("plug-ins", _plugins),
        _check("cpu", lambda: f"{os.cpu_count()} cores, a training step runs ({_step(torch.device('cpu'))})"),
        _cuda(),
        _check("store", _store),
        *(_dataset(name, data_root(data)) for name in DATASETS.names() if name not in OWN),
        _check("ray", lambda: _ray(address)),
    ]
    healthy = all(check.ok is not False for check in checks)
    if form == "json":
        return json.dumps([asdict(check) for check in checks], indent=1), healthy
    marks = {True: "ok", False: "FAIL", None: "-"}
    width = max(len(check.name) for check in checks)
    lines = [f"{marks[check.ok]:<5}{check.name:<{width}}  {check.text}" for check in checks]
    return "\n".join(lines), healthy


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Exception as error:  # whatever is wrong is what the doctor is asked to report
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _version(name: str) -> Check:
    return _check(name, lambda: importlib.metadata.version(name))


def _plugins() -> str:
    return ", ".join(f"{len(registry.names())} {kind}" for kind, registry in KINDS.items())


def _step(device: torch.device) -> str:
    layer = torch.nn.Linear(64, 10).to(device)
    layer(torch.ones(8, 64, device=device)).sum().backward()
    return f"torch {torch.__version__}"


def _cuda() -> Check:
    if not torch.cuda.is_available():
        return Check("cuda", None, "no CUDA device; trials run on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _check("cuda", lambda: f"{', '.join(names)}; a training step runs ({_step(torch.device('cuda'))})")


def _store() -> str:
    store = store_folder(None, str(Path.cwd()), cluster=False)
    ContentStore(store).probe()
    if is_url(store):
        return f"{store} takes writes"
    free = shutil.disk_usage(store).free / 1e9
    return f"{store} takes writes, {free:.0f} GB free"


def _dataset(name: str, root: str | None) -> Check:
    entry = DATASETS[name]
    try:
        raw = entry.fn(Path(root) if root else None, False, **(PART if entry.files else {}))
    except UserError as error:
        return Check(f"data {name}", None, str(error))
    if entry.files:
        return Check(f"data {name}", True, f"a part of it is read, {raw.num_classes} classes {raw.input_shape}")
    return Check(f"data {name}", True, f"{len(raw.y_train)} train, {len(raw.y_test)} test images {raw.input_shape}")


def _ray(address: str | None) -> str:
    from raybench.cluster.session import Session

    session = Session.start(slots=1) if address is None else Session.connect(address)
    try:
        found = session.resources()
        return f"{len(session.nodes())} node(s), {found['CPU']:g} CPUs, {found['GPU']:g} GPUs"
    finally:
        session.close()
