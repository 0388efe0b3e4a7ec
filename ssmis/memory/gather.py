# SPDX-License-Identifier: Apache-2.0
"""Candidates for a bank from all micro-steps and processes of a step, so that every process writes the same."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def gather_candidates(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join candidates in the order of ranks, and of micro-steps within a rank; without a process group, only these.

    Args:
        parts: `(N, E)` vectors and `(N,)` labels of each micro-step of this process; N is the same everywhere (as
            `sample_per_class` makes it).

    Returns:
        Vectors `(R * M * N, E)` and labels `(R * M * N,)` of R processes and M micro-steps, the same bits in each.

    Raises:
        ValueError: no parts.
    """
    if not parts:
        raise ValueError("parts is empty; expected the candidates of at least one micro-step")
    vectors = torch.cat([vectors for vectors, _ in parts])
    labels = torch.cat([labels for _, labels in parts])
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return vectors, labels
    return _gather(vectors), _gather(labels)


def _gather(tensor: Tensor) -> Tensor:
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return torch.cat(found)
