"""Train the predictors of `rewind` on collected histories and write them with the spec that made them.

    python jobs/train_predictors.py jobs/histories.yaml --data DIR --results DIR --out predictors.safetensors

One process, minutes. Beside OUT stands a YAML file with the spec, versions and validation numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.histories import plan_histories
from raybench.mechanisms.rewinding import save_predictors
from raybench.places import data_root, results_folder
from raybench.predictor_training import PredictorTraining, train_all
from raybench.problem import load_data
from raybench.space import resolve
from raybench.spec_file import apply_settings, read_spec
from raybench.version import __version__


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a YAML file such as jobs/histories.yaml")
    parser.add_argument("--results", help="folder of the histories")
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--out", required=True, help="the safetensors file to write")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as training.synthetic=0")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    try:
        spec = apply_settings(read_spec(given.spec), given.set)
        plan = plan_histories(spec)
        settings = resolve(PredictorTraining, spec.get("training", {}), "training")
        store = ContentStore(results_folder(plan.name, given.results))
        root = data_root(given.data)
        keys = [
            [run.key(load_data(run.dataset, root, False)[1]) for run in runs] for runs in (plan.runs, plan.held_out)
        ]
        predictors, report = train_all(*keys, store, settings, lambda line: print(line, flush=True))
    except UserError as error:
        print(f"train_predictors: {error}", file=sys.stderr)
        return 2
    out = Path(given.out)
    save_predictors(out, predictors)
    made = {
        "spec": spec,
        "histories": {"trained_on": len(plan.runs), "held_out": len(plan.held_out)},
        "validation": {kind: _rounded(found) for kind, found in report.items()},
        "versions": {"raybench": __version__, "torch": str(torch.__version__)},
        "train_s": round(time.perf_counter() - started, 1),
    }
    out.with_suffix(".yaml").write_text(yaml.safe_dump(made, sort_keys=False, width=120))
    print(yaml.safe_dump(report, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
