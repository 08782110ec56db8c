"""Layer-wise Integrated Gradients for Transformers: a Captum extension."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_lig.answers import Answer, why
    from captum_lig.errors import LigError
    from captum_lig.flow.layer_flow import LayerFlow
    from captum_lig.graph import FlowGraph
    from captum_lig.inspection.inspect import inspect_model
    from captum_lig.inspection.report import ModelReport
    from captum_lig.layer_flow_ig import LayerFlowIG
    from captum_lig.model.user_block import Block
    from captum_lig.set_to_set_ig import SetToSetIG

__all__ = [
    "Answer",
    "Block",
    "FlowGraph",
    "LayerFlow",
    "LayerFlowIG",
    "LigError",
    "ModelReport",
    "SetToSetIG",
    "inspect_model",
    "why",
]

_HOME = {
    "Answer": "captum_lig.answers",
    "Block": "captum_lig.model.user_block",
    "FlowGraph": "captum_lig.graph",
    "LayerFlow": "captum_lig.flow.layer_flow",
    "LayerFlowIG": "captum_lig.layer_flow_ig",
    "LigError": "captum_lig.errors",
    "ModelReport": "captum_lig.inspection.report",
    "SetToSetIG": "captum_lig.set_to_set_ig",
    "inspect_model": "captum_lig.inspection.inspect",
    "why": "captum_lig.answers",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: the command line's help needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
