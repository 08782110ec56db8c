"""Captum's ``LayerIntegratedGradients`` at every depth, for the tokens.

Sundararajan et al. (2017), at the residual stream entering each block and leaving the last, added
up over the width. It gives what Captum gives (a test compares them), but runs only the blocks
above and the tokens that change: Captum runs the whole model at each node of each depth.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.patching.net import Question, Scores

NODES = 24


def at_depth(question: Question, layer: int, nodes: int = NODES) -> Tensor:
    """``(T,)`` attributions of the tokens entering a block, or leaving the last."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    end, start = question.input.stream[layer], question.baseline.stream[layer]
    parts = torch.tensor((points + 1) / 2, dtype=end.dtype)[:, None, None]
    z = (start + parts * (end - start)).requires_grad_()
    (found,) = torch.autograd.grad(question.value(z, layer).sum(), z)
    gradient = torch.einsum("n,ntd->td", torch.tensor(weights / 2), found.double())
    return (gradient * (end - start)[0].double()).sum(-1)


def layer_integrated_gradients(question: Question, nodes: int = NODES) -> Scores:
    """Of the tokens at every depth."""
    depths = range(len(question.net.blocks) + 1)
    return question.padded({"tokens": torch.stack([at_depth(question, d, nodes) for d in depths])})


def left_in_place(question: Question, nodes: int = NODES) -> Scores:
    """What the tokens leaving the last block have, given to the same tokens at every depth."""
    depth = len(question.net.blocks)
    top = at_depth(question, depth, nodes)
    return question.padded({"tokens": top.expand(depth + 1, -1)})
