"""Layer-wise Integrated Gradients for Transformers: a Captum extension."""

from captum_lig.errors import LigError
from captum_lig.flow import LayerFlow
from captum_lig.layer_flow import LayerFlowIG
from captum_lig.set_to_set import SetToSetIG

__all__ = ["LayerFlow", "LayerFlowIG", "LigError", "SetToSetIG"]
