# SPDX-License-Identifier: Apache-2.0
"""Fused operations: a readable definition, a chunked torch path, autograd and dispatch in separate files."""

from ssmis.kernels.voxel_contrast import VoxelContrastStats, reasons, voxel_contrast

__all__ = ["VoxelContrastStats", "reasons", "voxel_contrast"]
