# SPDX-License-Identifier: Apache-2.0
"""Batches of patches: the batch of a step is a pure function of seed and step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator

from ssmis.data.augment import Augment, Rows
from ssmis.data.batch import Batch, part_of
from ssmis.data.cache import Entry
from ssmis.data.crop import Crop, CropPicker, stack_crops
from ssmis.data.sampling import TwoStreamSampler, batch_key

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]


class BatchMaker:
    """`maker(step) -> Batch`: cases from the sampler, a random crop of each, augmentation in one go.

    A crop larger than its volume is padded on both sides: the image with zeros, labels with -1, and `valid`
    is false there. Labels of unlabelled cases are never looked at.

    Args:
        cache: id -> (image, label).
        sampler: step -> ids.
        patch: size of the crops.
        seed: with the step, decides everything.
        labelled_augment: for labelled crops; default: `Augment.weak()`.
        unlabelled_augment: for unlabelled crops: geometry of all views, intensity of the weak one; default likewise.
        strong_views: number of strong views of the unlabelled crops.
        strong_augment: its intensity makes the strong views from the moved, otherwise untouched crop; default:
            `Augment.strong()`.
        foreground_prob: chance that a labelled crop is centred on a foreground voxel of its case.
        transform: called with a dict of `image` `(C, *S)`, `label` `(1, *S)` (-1 throughout for unlabelled crops),
            `valid` `(1, *S)` and `key`, before augmentation; returns such a dict. If it has `set_random_state` (MONAI),
            it is seeded with the key before each call; any other should draw from `key`.
        device: where augmentation runs and the batch ends up.
    """

    def __init__(
        self,
        cache: Mapping[str, Entry],
        sampler: TwoStreamSampler,
        *,
        patch: Sequence[int],
        seed: int = 0,
        labelled_augment: Augment | None = None,
        unlabelled_augment: Augment | None = None,
        strong_views: int = 0,
        strong_augment: Augment | None = None,
        foreground_prob: float = 0.0,
        transform: Transform | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if strong_views < 0:
            raise ValueError(f"strong_views is {strong_views}; expected at least 0")
        for case in (*sampler.labelled_ids, *sampler.unlabelled_ids):
            dims = cache[case].image.ndim - 1
            if len(patch) != dims:
                raise ValueError(f"patch is {tuple(patch)}; expected {dims} lengths, as case {case!r} has axes")
        for case in sampler.labelled_ids:
            if cache[case].label is None:
                raise ValueError(f"case {case!r} is in labelled_ids of the sampler but has no label in the cache")
        self.cache = cache
        self.sampler = sampler
        self.seed = seed
        self.labelled_augment = labelled_augment or Augment.weak()
        self.unlabelled_augment = unlabelled_augment or Augment.weak()
        self.strong_views = strong_views
        self.strong_augment = strong_augment or Augment.strong()
        self.transform = transform
        self.device = torch.device(device)
        self._picker = CropPicker(tuple(patch), foreground_prob)

    @property
    def decides(self) -> tuple[object, ...]:
        """What the batches follow from besides the images; processes that train together must have the same."""
        return (self.seed, self._picker.patch, self._picker.foreground_prob, self.strong_views, vars(self.sampler))

    def __call__(self, step: int) -> Batch:
        """Make the batch of one step; `step >= 0`."""
        return self.part(step, 0, 1)

    def part(self, step: int, index: int, count: int) -> Batch:
        """Return `maker(step).part(index, count)`, made without the rest of the batch, for one of several processes.

        Random numbers are drawn for the whole batch; images are cropped and changed for the part alone.

        Raises:
            ValueError: the batch does not divide by `count`.
        """
        labelled, unlabelled = self.sampler(step)
        first, second = part_of(index, count, len(labelled), len(unlabelled))
        key = batch_key(self.seed, step)
        generator = Generator().manual_seed(key)
        keys = [batch_key(key, number) for number in range(len(labelled) + len(unlabelled))]

        def crops(cases: Sequence[str], own: Sequence[int], *, labelled: bool) -> list[Crop]:
            return [self._crop(case, key, labelled=labelled) for case, key in zip(cases, own, strict=True)]

        rows = Rows(first.start, first.stop, len(labelled))
        own = crops(labelled[first], keys[: len(labelled)][first], labelled=True)
        images, labels, _ = stack_crops(own, self.device)
        images, moved, _ = self.labelled_augment(images, generator, labels, rows=rows)
        weak, strong, valid = images[:0], (images[:0],) * self.strong_views, None
        if unlabelled:
            rows = Rows(second.start, second.stop, len(unlabelled))
            own = crops(unlabelled[second], keys[len(labelled) :][second], labelled=False)
            base, _, valid = stack_crops(own, self.device)
            base, _, valid = self.unlabelled_augment.move(base, generator, valid=valid, rows=rows)
            weak = self.unlabelled_augment.intensity(base, generator, rows)
            strong = tuple(self.strong_augment.intensity(base, generator, rows) for _ in range(self.strong_views))
        return Batch(
            labelled=images,
            labels=labels if moved is None else moved,
            unlabelled=weak,
            strong=strong,
            valid=valid if valid is not None and not bool(valid.all()) else None,
            cases=(*labelled[first], *unlabelled[second]),
            key=key if count == 1 else batch_key(key, index),
        )

    def _crop(self, case: str, key: int, *, labelled: bool) -> Crop:
        entry = self.cache[case]
        crop = self._picker(case, entry.image, entry.label if labelled else None, key)
        if self.transform is None:
            return crop
        seed_transform = getattr(self.transform, "set_random_state", None)
        if seed_transform is not None:
            seed_transform(seed=key % 2**32)
        result = self.transform({"image": crop.image, "label": crop.label[None], "valid": crop.valid[None], "key": key})
        return Crop.from_mapping(result, patch=self._picker.patch)
