"""Ray: session, warm actors, Tune search in rounds, aggregator, leases. The only package that imports Ray.

Ray and Tune take their habits from the environment, some of them while they are imported: hence here, and first.
What a person has set stays.
"""

import os

HABITS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers hide GPUs that they were not given themselves
    "RAY_worker_niceness": "0",  # Ray's 15 would time trials by what else the machine does
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"^A worker died or was killed|^Task \S+ failed\.",  # retried, or a failed row
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # rows are the truth: Tune's snapshots would only cost time
}
for _name, _value in HABITS.items():
    os.environ.setdefault(_name, _value)
