# SPDX-License-Identifier: Apache-2.0
"""Fused operations: a readable definition, a chunked torch path, device code, autograd and dispatch, each in a file."""

from ssmis.kernels.voxel_contrast import VoxelContrastStats, reasons, voxel_contrast

__all__ = ["VoxelContrastStats", "reasons", "voxel_contrast"]
