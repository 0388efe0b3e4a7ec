# SPDX-License-Identifier: Apache-2.0
"""Copy-paste of boxes: what is mixed is one or the other, labels alike, and boxes lie anywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, make_logits, make_mask, sizes

from ssmis.data import box_mix, cut_mix, random_boxes

SEEDS, SIDES = st.integers(0, 2**31), st.floats(0.1, 1.0)
PASTED = st.sampled_from(["random", "labelled", "unlabelled"])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(SEEDS, sizes(high=9), SIDES)
def test_a_box_has_the_stated_side_on_every_axis(seed, size, side):
    boxes = random_boxes(3, size, side=side, generator=seeded(seed))
    assert boxes.shape == (3, *size)
    for box in boxes:
        corners = box.nonzero()
        edges = corners.amax(0) - corners.amin(0) + 1
        assert edges.tolist() == [max(1, round(side * length)) for length in size]
        assert box.sum() == edges.prod()


def test_boxes_reach_every_place():
    reached = random_boxes(400, (7, 5), side=0.4, generator=seeded(0))
    assert reached.any(0).all()
    assert len(reached.flatten(1).unique(dim=0)) == (7 - 3 + 1) * (5 - 2 + 1)


@given(SEEDS, sizes(low=2), st.integers(1, 3), st.integers(0, 4), PASTED, SIDES, st.booleans())
def test_every_voxel_comes_whole_from_one_of_the_two(seed, size, labelled, unlabelled, pasted, side, padded):
    images, others = (make_logits(seed + i, n, 2, size) for i, n in enumerate((labelled, unlabelled)))
    labels, pseudo = make_labels(seed, labelled, 4, size, low=-1), make_labels(seed + 5, unlabelled, 4, size)
    valid = make_mask(seed, unlabelled, size) if padded else None
    mixed = box_mix(images, labels, others, pseudo, side=side, pasted=pasted, valid=valid, generator=seeded(seed))
    assert mixed.images.shape == others.shape
    for i in range(unlabelled):
        inside = mixed.labelled[i]
        assert torch.equal(mixed.images[i][:, inside], images[i % labelled][:, inside])
        assert torch.equal(mixed.images[i][:, ~inside], others[i][:, ~inside])
        assert torch.equal(mixed.labels[i][inside], labels[i % labelled][inside])  # ground truth there
        targets = pseudo[i] if valid is None else pseudo[i].where(valid[i], -1)
        assert torch.equal(mixed.labels[i][~inside], targets[~inside])
        box = 1
        for length in size:
            box *= max(1, round(side * length))
        volume = inside.numel()
        expected = {"labelled": {box}, "unlabelled": {volume - box}, "random": {box, volume - box}}[pasted]
        assert int(inside.sum()) in expected


def test_both_directions_with_the_same_draw_are_complements():
    data = make_logits(0, 2, 1, (6, 6)), make_labels(0, 2, 2, (6, 6))
    there, back = (box_mix(*data, *data, pasted=way, generator=seeded(3)) for way in ("labelled", "unlabelled"))
    assert torch.equal(there.labelled, ~back.labelled)
    ways = {
        bool(box_mix(*data, *data, side=0.3, generator=seeded(s)).labelled[0].float().mean() < 0.5) for s in range(20)
    }
    assert ways == {True, False}


def test_labels_of_any_integer_type_come_back_as_int64():
    images, others = torch.rand(1, 1, 6, 6), torch.rand(2, 1, 6, 6)
    labels, pseudo = make_labels(0, 1, 3, (6, 6)), make_labels(1, 2, 3, (6, 6))
    valid = make_mask(2, 2, (6, 6))
    expected = box_mix(images, labels, others, pseudo, valid=valid, generator=seeded(0)).labels
    mixed = box_mix(images, labels.int(), others, pseudo.to(torch.uint8), valid=valid, generator=seeded(0)).labels
    assert mixed.dtype == torch.int64
    assert torch.equal(mixed, expected)
    assert (mixed == -1).any()


def test_the_global_generator_decides_without_one():
    data = make_logits(0, 2, 1, (6, 6)), make_labels(0, 2, 2, (6, 6))
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(box_mix(*data, *data, side=0.3).labelled)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_what_does_not_fit_is_named():
    images, labels = make_logits(0, 2, 1, (6, 6)), make_labels(0, 2, 2, (6, 6))
    with pytest.raises(ValueError, match=r"unlabelled has shape \(2, 1, 5, 6\); expected \(U, 1, 6, 6\)"):
        box_mix(images, labels, images[:, :, :5], labels[:, :5])
    with pytest.raises(ValueError, match="pseudo_labels has shape"):
        box_mix(images, labels, images, labels[:1])
    with pytest.raises(ValueError, match="images has no volume"):
        box_mix(images[:0], labels[:0], images, labels)
    with pytest.raises(ValueError, match="side is 0"):
        box_mix(images, labels, images, labels, side=0)
    with pytest.raises(ValueError, match="pasted is 'both'"):
        box_mix(images, labels, images, labels, pasted="both")


@given(SEEDS, sizes(high=6), st.integers(1, 4), SIDES)
def test_a_box_holds_the_next_volume_and_the_rest_its_own(seed, size, count, side):
    images, labels = make_logits(seed, count, 2, size), make_labels(seed, count, 3, size)
    boxes = random_boxes(count, size, side=side, generator=seeded(seed))
    mixed, mixed_labels = cut_mix(images, boxes), cut_mix(labels, boxes)
    for i, box in enumerate(boxes):
        following = (i + 1) % count
        for own, before in ((mixed, images), (mixed_labels[:, None], labels[:, None])):
            assert torch.equal(own[i][:, box], before[following][:, box])
            assert torch.equal(own[i][:, ~box], before[i][:, ~box])


def test_every_voxel_of_cut_volumes_has_the_gradient_of_the_place_it_went_to():
    images, boxes = torch.zeros(2, 1, 3, 3, requires_grad=True), torch.zeros(2, 3, 3, dtype=torch.bool)
    boxes[0, 0, 0] = True  # volume 0 takes this voxel from volume 1; its own is lost
    cut_mix(images, boxes).sum().backward()
    expected = torch.ones(2, 1, 3, 3)
    expected[:, 0, 0, 0] = torch.tensor([0.0, 2.0])
    assert torch.equal(images.grad, expected)


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 4, 5), (1, 2, 3, 4, 4)])
def test_boxes_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match="boxes has shape"):
        cut_mix(torch.zeros(3, 2, 4, 4), torch.zeros(shape, dtype=torch.bool))
