"""The attention core along a path: tensors only, knows no model.

For one head and target ``j``: logits ``s_i``, weights ``p`` of each source (a softmax), and
``u = sum_i p_i v_i``. With dots for derivatives along the path and ``g`` a cotangent of ``u``:

    rate of source i as key and value:   p_i (g.v'_i) + r_i s'_i     (s' by the key k_i)
    rate of the query, on i = j:         sum_i r_i s'_i              (s' by the query q_j)
    with r_i = p_i (g.v_i - g.u).

A *path* holds what does not change along it, for some rows (targets); ``path.at(alphas)`` are its
*points*, the state of the attention core there. Shapes: ``P`` path points, ``H`` heads, ``R`` rows,
``S`` sources, ``d`` head width.
"""

from captum_lig.attention.autograd import AutogradPath
from captum_lig.attention.cross import CrossPath
from captum_lig.attention.per_target import PerTargetPath
from captum_lig.attention.protocol import AttentionPath, Points
from captum_lig.attention.row_function import RowFunction
from captum_lig.attention.shared import SharedPath
from captum_lig.attention.target_token import TargetTokenPath

__all__ = [
    "AttentionPath",
    "AutogradPath",
    "CrossPath",
    "PerTargetPath",
    "Points",
    "RowFunction",
    "SharedPath",
    "TargetTokenPath",
]
