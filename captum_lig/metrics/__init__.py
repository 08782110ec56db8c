"""How good an explanation is: pure functions of tensors and models, and means of them over texts.

A function takes one text (or one map) and gives its numbers. The class beside it collects texts:
``update`` takes one text, what the function takes or what it gave (each class says which),
``compute`` gives means with intervals, ``reset`` forgets.
"""

from captum_lig.metrics.across_layers import NodeAgreement, node_agreement
from captum_lig.metrics.circuits import (
    CircuitsOverTexts,
    circuit_cmd,
    circuit_cpr,
    circuit_faithfulness,
)
from captum_lig.metrics.completeness import (
    Completeness,
    CompletenessErrors,
    ComposedAgainstDirect,
    completeness,
    composed_against_direct,
    flow_completeness,
    flow_composition,
)
from captum_lig.metrics.linguistic import (
    Attachment,
    AttachmentOverTexts,
    attachment,
    cue_found,
    strongest,
    word_map,
)
from captum_lig.metrics.randomisation import (
    RandomisationOverTexts,
    Randomised,
    cascading_randomisation,
)
from captum_lig.metrics.statistics import (
    Agreement,
    Interval,
    OverTexts,
    agreement,
    interval,
    mean_over,
)
from captum_lig.metrics.texts import FRACTIONS, Erasure, ErasureOverTexts, erasure
from captum_lig.metrics.treebank import Tree, read_trees
from captum_lig.metrics.within_layer import (
    Intervening,
    Interventions,
    MapAgreement,
    edge_interventions,
    interventions,
    map_agreement,
    row_agreement,
)

__all__ = [
    "FRACTIONS",
    "Agreement",
    "Attachment",
    "AttachmentOverTexts",
    "CircuitsOverTexts",
    "Completeness",
    "CompletenessErrors",
    "ComposedAgainstDirect",
    "Erasure",
    "ErasureOverTexts",
    "Interval",
    "Intervening",
    "Interventions",
    "MapAgreement",
    "NodeAgreement",
    "OverTexts",
    "RandomisationOverTexts",
    "Randomised",
    "Tree",
    "agreement",
    "attachment",
    "cascading_randomisation",
    "circuit_cmd",
    "circuit_cpr",
    "circuit_faithfulness",
    "completeness",
    "composed_against_direct",
    "cue_found",
    "edge_interventions",
    "erasure",
    "flow_completeness",
    "flow_composition",
    "interval",
    "interventions",
    "map_agreement",
    "mean_over",
    "node_agreement",
    "read_trees",
    "row_agreement",
    "strongest",
    "word_map",
]
