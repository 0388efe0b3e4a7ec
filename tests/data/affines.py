# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for affines as scanners and programs write them, and volumes on them."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def affines(draw, *, degrees=180.0, shear=0.15):
    """Draw an oblique, permuted, flipped, sheared, anisotropic affine `(4, 4)`."""
    angles = [np.deg2rad(draw(st.floats(-degrees, degrees))) for _ in range(3)]
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        plane = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn = turn @ step
    slant = np.eye(3)
    slant[0, 1], slant[0, 2], slant[1, 2] = (draw(st.floats(-shear, shear)) for _ in range(3))
    sizes = np.array([draw(st.floats(0.2, 8.0)) for _ in range(3)])
    signs = np.array([draw(st.sampled_from([-1, 1])) for _ in range(3)])
    order = draw(st.permutations(range(3)))
    affine = np.eye(4)
    affine[:3, :3] = (turn @ slant * sizes * signs)[:, order]
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(1, 7)] * 3)
