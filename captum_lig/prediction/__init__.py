"""Numbers that a model says about a text, and Captum's relevances of its tokens to them."""

from captum_lig.prediction.baselines import input_baseline
from captum_lig.prediction.comparison import (
    RelevanceComparison,
    compare_with_layer_integrated_gradients,
)
from captum_lig.prediction.layer_ig import (
    DirectRelevance,
    direct_relevance,
    last_layer_relevance,
    layer_baselines,
)
from captum_lig.prediction.targets import (
    Target,
    class_logit,
    cosine,
    log_probability,
    logit,
    read_target,
    state,
    target_value,
)

__all__ = [
    "DirectRelevance",
    "RelevanceComparison",
    "Target",
    "class_logit",
    "compare_with_layer_integrated_gradients",
    "cosine",
    "direct_relevance",
    "input_baseline",
    "last_layer_relevance",
    "layer_baselines",
    "log_probability",
    "logit",
    "read_target",
    "state",
    "target_value",
]
