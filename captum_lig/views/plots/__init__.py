"""Pictures of flows and graphs. Every function returns the figure and its axes."""

from captum_lig.views.plots.bars import plot_completeness, plot_shares
from captum_lig.views.plots.flow import plot_flow
from captum_lig.views.plots.graph import plot_graph
from captum_lig.views.plots.maps import plot_compared, plot_heads, plot_layers, plot_map
from captum_lig.views.plots.over import plot_picture, plot_sound
from captum_lig.views.plots.prediction import plot_prediction

__all__ = [
    "plot_compared",
    "plot_completeness",
    "plot_flow",
    "plot_graph",
    "plot_heads",
    "plot_layers",
    "plot_map",
    "plot_picture",
    "plot_prediction",
    "plot_shares",
    "plot_sound",
]
