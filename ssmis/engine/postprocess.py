# SPDX-License-Identifier: Apache-2.0
"""Clean-up of label maps; off by default everywhere, and part of the protocol where it is on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssmis._optional import require


def largest_component(labels: Tensor, *, classes: Sequence[int]) -> Tensor:
    """Keep the largest face-connected component of each class; the rest of the class becomes background (0).

    Args:
        labels: integer `(*S)`.
        classes: the foreground classes to clean; others stay as they are.

    Returns:
        A new tensor of the same dtype on the same device. Of components of equal size the first in memory order stays.

    Raises:
        ValueError: the labels are not integers, or 0 is among the classes.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels has dtype {labels.dtype}; expected integer class indices")
    if 0 in classes:
        raise ValueError(f"classes is {tuple(classes)}; expected foreground classes, without the background 0")
    ndimage = require("scipy.ndimage", extra="medical", purpose="the largest component")
    array = labels.detach().cpu().numpy().copy()
    for label in classes:
        components, count = ndimage.label(array == label)
        if count > 1:
            sizes = np.bincount(components.ravel())[1:]
            array[(components > 0) & (components != sizes.argmax() + 1)] = 0
    return torch.from_numpy(array).to(labels.device)
