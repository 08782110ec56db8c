"""Pictures of flows."""

from captum_lig.visualization.flow import plot_flow

__all__ = ["plot_flow"]
