"""The flow graph: the layers of one text joined, and the questions one asks of them."""

from captum_lig.graph.arguments import CannotCarryWarning
from captum_lig.graph.direct_edges import DirectEdges, Edge, Reader, Writer
from captum_lig.graph.edges import Edges
from captum_lig.graph.flow_graph import FlowGraph
from captum_lig.graph.layer import Convergence
from captum_lig.graph.routes import Route, Step
from captum_lig.graph.trace import Trace

__all__ = [
    "CannotCarryWarning",
    "Convergence",
    "DirectEdges",
    "Edge",
    "Edges",
    "FlowGraph",
    "Reader",
    "Route",
    "Step",
    "Trace",
    "Writer",
]
