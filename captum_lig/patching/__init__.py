"""What single nodes and edges of a model do to a number: they get other values, and it runs on."""

from captum_lig.patching.check import Check, CheckedNode, Correlation, check
from captum_lig.patching.edges import EdgeEffects
from captum_lig.patching.effects import Effects, Means
from captum_lig.patching.nodes import Node, NodeValues, node_values_of
from captum_lig.patching.patch import edge_effects, effects, means

__all__ = [
    "Check",
    "CheckedNode",
    "Correlation",
    "EdgeEffects",
    "Effects",
    "Means",
    "Node",
    "NodeValues",
    "check",
    "edge_effects",
    "effects",
    "means",
    "node_values_of",
]
