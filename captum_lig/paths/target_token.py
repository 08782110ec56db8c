"""``target_token`` paths in closed form: for target ``j`` every source starts as ``z_j``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from captum_lig.paths.key_norm import KeyWeights
from captum_lig.paths.norm import Mixture, Norm
from captum_lig.paths.points import PointSet
from captum_lig.paths.softmax import RowFunction
from captum_lig.paths.values import MixtureValues

__all__ = ["PairWeights", "TargetTokenPath"]


@dataclass(frozen=True)
class PairWeights:
    """Weights of the mixture along the path from each target's content to each source's."""

    norm: Norm
    start: Tensor
    """``(R, 1)`` mean squares of the targets, centred."""
    end: Tensor
    """``(1, S)`` mean squares of the sources."""
    dot: Tensor
    """``(R, S)`` mean products."""

    @classmethod
    def of(cls, norm: Norm, z: Tensor, rows: Tensor) -> PairWeights:
        """Of the paths from ``z[rows]`` to each token of ``z (S, D)``."""
        c = norm.center(z)
        square = (c * c).mean(-1)
        return cls(norm, square[rows][:, None], square[None], c[rows] @ c.T / c.shape[-1])

    def select(self, rows: Tensor) -> PairWeights:
        """Those of some of the rows."""
        return replace(self, start=self.start[rows], dot=self.dot[rows])

    def at(self, alphas: Tensor) -> Mixture:
        """``(P, R or 1, S or 1)`` at ``alphas (P,)``."""
        return self.norm.mixture(self.start, self.end, self.dot, alphas)


@dataclass(frozen=True)
class TargetTokenPath:
    """Paths from ``z_j`` for each target ``j``, in closed form: no projection along the path.

    Logits and values are mixtures, with scalar weights, of tables made once; the query is
    constant. The values' bias is the same at each source.
    """

    rows: Tensor
    weights: PairWeights
    row: RowFunction
    mask: Tensor | None
    """``(1 or H, R, S)``, or None if it is in ``bias_logits``."""
    keys: KeyWeights | None
    """How the keys' own norm changes the weights of the logits, or None if keys have none."""
    bias_logits: Tensor
    """``scale q_j.b_i``, ``(H, R, S)``."""
    start_logits: Tensor
    """``scale q_j.(k_i(z_j) - b_i)``, ``(H, R, S or 1)``."""
    end_logits: Tensor
    """``scale q_j.(k_i(z_i) - b_i)``, ``(H, R, S)``."""
    start_values: Tensor
    """``v(z_j) - b``, ``(H, R, d)``."""
    end_values: Tensor
    """``v(z_i) - b``, ``(Hkv, S, d)``."""
    bias_values: Tensor
    """``b``, ``(H, d)``."""
    frozen: Tensor
    """``(R, S)`` where ``z_i`` is ``z_j``."""

    @property
    def sources(self) -> int:
        """Number of sources ``S``."""
        return self.frozen.shape[1]

    def select(self, rows: Tensor) -> TargetTokenPath:
        """The same paths for some of their rows."""
        return replace(
            self,
            rows=self.rows[rows],
            weights=self.weights.select(rows),
            keys=None if self.keys is None else self.keys.select(rows),
            mask=None if self.mask is None else self.mask[:, rows],
            bias_logits=self.bias_logits[:, rows],
            start_logits=self.start_logits[:, rows],
            end_logits=self.end_logits[:, rows],
            start_values=self.start_values[:, rows],
            frozen=self.frozen[rows],
        )

    def double(self) -> TargetTokenPath:
        """The same paths in float64."""
        tables = [f.name for f in fields(self) if f.name.endswith(("_logits", "_values"))]
        return replace(self, **{name: getattr(self, name).double() for name in tables})

    def at(self, alphas: Tensor) -> PointSet:
        """Layout ``(H, P, R, S)``."""
        w = self.weights.at(alphas).to(self.end_logits.dtype)
        start, end = self.start_logits[:, None], self.end_logits[:, None]
        k = w if self.keys is None else self.keys.at(w, len(end))
        logits = torch.addcmul(self.bias_logits[:, None], k.start, start).addcmul_(k.end, end)
        # Sources that do not move get no weight here, where there are no heads: at hundreds of
        # tokens, what has heads must not be gone through more often than needed.
        moving = w.map(self._moving)
        d_start, d_end = (
            (moving.d_start, moving.d_end) if k is w else map(self._moving, (k.d_start, k.d_end))
        )
        ds = (d_end * end).addcmul_(d_start, start)
        mask = None if self.mask is None else self.mask[:, None]
        weights = self.row(logits, mask, heads=0)
        return PointSet(
            weights=weights,
            ds_key=weights.capped(ds),
            ds_query=None,
            values=MixtureValues(moving, self.start_values, self.end_values, self.bias_values),
            to_layout=(2, 0, 1),
            rows=self.rows,
            frozen=None,
        )

    def _moving(self, weights: Tensor) -> Tensor:
        """Weights ``(..., R or 1, S or 1)`` of the sources that move, ``(..., R, S)``; else 0."""
        return torch.where(self.frozen, weights.new_zeros(()), weights)
