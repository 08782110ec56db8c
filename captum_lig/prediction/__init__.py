"""From a scalar of the model to the tokens of its last layer, and from there down the graph."""

from captum_lig.prediction.comparison import (
    RelevanceComparison,
    compare_with_layer_integrated_gradients,
)
from captum_lig.prediction.layer_ig import (
    DirectRelevance,
    direct_relevance,
    last_layer_relevance,
    layer_baselines,
    token_baseline,
)
from captum_lig.prediction.targets import class_logit, cosine, logit, logit_difference

__all__ = [
    "DirectRelevance",
    "RelevanceComparison",
    "class_logit",
    "compare_with_layer_integrated_gradients",
    "cosine",
    "direct_relevance",
    "last_layer_relevance",
    "layer_baselines",
    "logit",
    "logit_difference",
    "token_baseline",
]
