"""Metrics: functions of cached outputs, one file per metric or family. See ``raybench.outputs``."""

# What an experiment computes when it names no metrics. Cheap ones only: no further training, no shadow models.
DEFAULT_METRICS: tuple[str, ...] = (
    "retain_accuracy",
    "forget_accuracy",
    "validation_accuracy",
    "validation_accuracy_forgotten",
    "test_accuracy",
    "test_accuracy_forgotten",
    "unlearning_accuracy",
    "retain_loss",
    "forget_loss",
    "loss_attack_auc",
    "loss_attack_accuracy",
    "loss_attack_tpr",
    "confidence_attack",
    "distance",
    "distance_validation",
    "js_divergence",
    "activation_distance",
    "tow",
    "average_gap",
)
