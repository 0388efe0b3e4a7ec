# SPDX-License-Identifier: Apache-2.0
"""A gate map from two uncertainty maps, by cross-attention between their patches."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmis._checks import check_range, check_same_shape
from ssmis.nets.blocks import check_dims


class CrossAttentionGate(nn.Module):
    """Patches of the first map ask those of the second one, and the answers are laid out as a map again.

    Both maps are cut into patches and embedded by the same linear map and the same learned positions;
    attention with queries from the first and keys and values from the second map, a perceptron with one hidden layer
    around which the tokens pass, and a linear map back to the voxels of a patch. No layer norm, and no way around the
    attention. The gate is a real number a voxel; it starts as 1 plus what the random last layer gives.

    The table of positions belongs to maps of `size`; for others it is interpolated.

    Args:
        dims: number of spatial dimensions, 2 or 3.
        size: of the maps the table of positions is made for, a multiple of `patch` on every axis.
        patch: voxels of a patch along every axis, or along each.
        embedding: channels of a token, a multiple of `heads`.
        heads: of the attention.
        hidden: channels of the perceptron's hidden layer.
        dropout: probability of dropping an attention weight or a voxel of the gate.

    Raises:
        ValueError: an argument is out of range; in forward: the maps are not `(B, 1, *S)` alike, or an axis is no
            multiple of `patch`.

    Gradient: to both maps.
    Paper: the pseudo-label generation of Huang et al., IEEE TIP 2025, arXiv 2508.09014, after their public code.
        Differs from it: positions are interpolated, the gate starts around 1, dropout is off. The way around the
        perceptron is not told there.
    """

    def __init__(
        self,
        *,
        dims: int,
        size: Sequence[int],
        patch: int | Sequence[int] = 16,
        embedding: int = 96,
        heads: int = 8,
        hidden: int = 384,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_dims(dims)
        check_range(dropout, 0.0, 1.0, name="dropout")
        self.patch = (patch,) * dims if isinstance(patch, int) else tuple(patch)
        if len(self.patch) != dims or min(*self.patch, heads, hidden, embedding) < 1 or embedding % heads:
            raise ValueError(
                f"patch is {patch}, embedding {embedding}, heads {heads} and hidden {hidden}; "
                f"expected 1 or more each, patch a number or {dims}, and embedding a multiple of heads"
            )
        self.dims, self.heads, self.dropout = dims, heads, dropout
        voxels = prod(self.patch)
        grid = self._grid(size, "size")
        self.embed = nn.Linear(voxels, embedding)
        self.positions = nn.Parameter(0.02 * torch.randn(1, embedding, *grid))
        self.query = nn.Linear(embedding, embedding)
        self.key_value = nn.Linear(embedding, 2 * embedding)
        self.merge = nn.Linear(embedding, embedding)
        self.perceptron = nn.Sequential(nn.Linear(embedding, hidden), nn.GELU(), nn.Linear(hidden, embedding))
        self.spread = nn.Linear(embedding, voxels)
        nn.init.ones_(self.spread.bias)

    def forward(self, query_map: Tensor, key_map: Tensor) -> Tensor:
        """Return the gate `(B, 1, *S)` of two maps `(B, 1, *S)`."""
        check_same_shape(query_map=query_map, key_map=key_map)
        if query_map.ndim != self.dims + 2 or query_map.shape[1] != 1:
            raise ValueError(
                f"query_map has shape {tuple(query_map.shape)}; expected (B, 1, *S) with {self.dims} spatial axes"
            )
        size = query_map.shape[2:]
        grid = self._grid(size, "query_map")
        positions = self._positions(grid).flatten(2).transpose(1, 2)
        first, second = (self.embed(self._cut(torch.cat([query_map, key_map]), grid)) + positions).chunk(2)
        key, value = self._split(self.key_value(second)).chunk(2, dim=-1)
        answers = F.scaled_dot_product_attention(
            self._split(self.query(first)), key, value, dropout_p=self.dropout if self.training else 0.0
        )
        tokens = self.merge(answers.transpose(1, 2).flatten(2))
        tokens = tokens + self.perceptron(tokens)
        gate = self._lay_out(self.spread(tokens), grid).reshape(-1, 1, *size)
        return F.dropout(gate, self.dropout, self.training)

    def _split(self, tokens: Tensor) -> Tensor:
        # (B, tokens, E) to (B, heads, tokens, E / heads)
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _cut(self, maps: Tensor, grid: Sequence[int]) -> Tensor:
        # (B, 1, *S) to (B, tokens, voxels of a patch)
        values = maps.reshape(-1, *(length for both in zip(grid, self.patch) for length in both))
        order = [*range(1, 2 * self.dims, 2), *range(2, 2 * self.dims + 1, 2)]
        return values.permute(0, *order).flatten(1, self.dims).flatten(2)

    def _lay_out(self, values: Tensor, grid: Sequence[int]) -> Tensor:
        # (B, tokens, voxels of a patch) to (B, g1, p1, g2, p2, ...)
        values = values.reshape(-1, *grid, *self.patch)
        order = [axis for i in range(1, self.dims + 1) for axis in (i, self.dims + i)]
        return values.permute(0, *order)

    def _positions(self, grid: Sequence[int]) -> Tensor:
        exported = torch.jit.is_tracing()  # type: ignore[attr-defined]  # then for every size
        if tuple(self.positions.shape[2:]) == tuple(grid) and not exported:
            return self.positions
        mode = "bilinear" if self.dims == 2 else "trilinear"
        return F.interpolate(self.positions, size=tuple(grid), mode=mode, align_corners=False)

    def _grid(self, size: Sequence[int], name: str) -> tuple[int, ...]:
        if len(size) != self.dims or any(length % own or length < 1 for length, own in zip(size, self.patch)):
            told = self.patch[0] if len(set(self.patch)) == 1 else self.patch
            raise ValueError(
                f"{name} has spatial size {tuple(size)}; expected {self.dims} axes, each a multiple of patch {told}"
            )
        return tuple(length // own for length, own in zip(size, self.patch))
