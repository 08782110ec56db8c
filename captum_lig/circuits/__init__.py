"""A model with a part of its edges or nodes alone: how much of a number do they carry?"""

from captum_lig.circuits.curve import Curve
from captum_lig.circuits.edges import EdgeCircuits
from captum_lig.circuits.find import of_edges, of_nodes
from captum_lig.circuits.nodes import NodeCircuits
from captum_lig.circuits.order import kept_by_score
from captum_lig.metrics.circuits import SHARES

__all__ = [
    "SHARES",
    "Curve",
    "EdgeCircuits",
    "NodeCircuits",
    "kept_by_score",
    "of_edges",
    "of_nodes",
]
