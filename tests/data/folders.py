# SPDX-License-Identifier: Apache-2.0
"""Small folders of scans, as users have them."""

import numpy as np

RAS = np.diag([1.0, 1.0, 1.0, 1.0])
LPS = np.array([[-1.0, 0, 0, 9], [0, -1, 0, 9], [0, 0, 1, 0], [0, 0, 0, 1]])


def scan(seed, size=(12, 12, 8)):
    """An image with a bright block, and the block."""
    random = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    start = [int(random.integers(1, n - 5)) for n in size]
    label[tuple(slice(at, at + 4) for at in start)] = 1
    image = np.rint(random.normal(100, 10, size) + 80 * label).astype(np.int16)
    return image, label


def nifti(path, array, affine=RAS, *, dtype=None):
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array if dtype is None else array.astype(dtype), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def picture(path, array):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def plain(root, *, labelled=3, unlabelled=3, size=(12, 12, 8), values=1):
    """`images/` and `labels/`, every second case in LPS orientation."""
    for index in range(labelled + unlabelled):
        image, label = scan(index, size)
        affine = LPS if index % 2 else RAS
        nifti(root / "images" / f"case{index}.nii.gz", image, affine)
        if index < labelled:
            nifti(root / "labels" / f"case{index}.nii.gz", label.astype(np.int16) * values, affine)
    return root
