# SPDX-License-Identifier: Apache-2.0
"""Class means and samples of a fixed number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, make_logits, make_mask, sizes

from ssmis.memory import class_means, class_prototypes, sample_per_class


@given(st.integers(0, 2**31), st.integers(1, 4), sizes(), st.booleans())
def test_class_means_equal_a_loop(seed, classes, size, with_mask):
    features = make_logits(seed, 2, 5, size).double()
    labels = make_labels(seed, 2, classes, size, low=-1)
    mask = make_mask(seed, 2, size) if with_mask else None
    means, counts = class_means(features, labels, classes=classes, mask=mask)
    flat = features.movedim(1, -1)
    for k in range(classes):
        own = flat[(labels == k) & (True if mask is None else mask)]
        assert counts[k] == len(own)
        torch.testing.assert_close(means[k], own.mean(0) if len(own) else torch.zeros(5, dtype=torch.float64))


@given(st.integers(0, 2**31), st.floats(0.05, 1))
def test_the_mean_of_a_constant_map_does_not_depend_on_the_mask(seed, share):
    features = torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 6, 6)
    mask = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(seed)) < share
    means, counts = class_means(features, torch.zeros(2, 6, 6, dtype=torch.int64), classes=2, mask=mask)
    torch.testing.assert_close(means[0], torch.arange(3.0) * (counts[0] > 0))
    assert not means[1].any()


def test_class_means_pass_gradient_to_the_voxels_used():
    features = make_logits(0, 1, 3, (4, 4)).requires_grad_()
    labels = make_labels(0, 1, 2, (4, 4), low=-1)
    class_means(features, labels, classes=2)[0].sum().backward()
    assert torch.equal(features.grad.abs().sum(1) > 0, labels >= 0)


def test_numbers_outside_the_mask_do_not_matter():
    features = make_logits(0, 1, 3, (4,))
    labels = torch.tensor([[0, 1, -1, 0]])
    spoilt = features.clone()
    spoilt[..., 2] = float("nan")
    assert torch.equal(*(class_means(f, labels, classes=2)[0] for f in (features, spoilt)))


@given(st.integers(0, 2**31), st.integers(1, 4), sizes(), st.integers(1, 8), st.booleans())
def test_samples_are_voxels_of_their_class_and_volume(seed, classes, size, per_class, with_mask):
    features = make_logits(seed, 2, 5, size).requires_grad_()
    labels = make_labels(seed, 2, classes, size, low=-1)
    mask = make_mask(seed, 2, size) if with_mask else None
    vectors, vector_labels = sample_per_class(features, labels, classes=classes, per_class=per_class, mask=mask)
    assert vectors.shape == (2 * classes * per_class, 5)
    assert vector_labels.shape == (2 * classes * per_class,)
    assert not vectors.requires_grad
    directions = torch.nn.functional.normalize(features.detach(), dim=1).movedim(1, -1)
    slots = zip(vectors.view(2, classes, per_class, 5), vector_labels.view(2, classes, per_class))
    for volume, (own_vectors, own_labels) in enumerate(slots):
        for k in range(classes):
            inside = (labels[volume] == k) & (True if mask is None else mask[volume])
            count = min(int(inside.sum()), per_class)
            assert own_labels[k].tolist() == [k] * count + [-1] * (per_class - count)
            assert not own_vectors[k][count:].any()
            distance = torch.cdist(own_vectors[k][:count], directions[volume][inside])
            assert (distance < 1e-5).any(1).all()
            # no voxel is drawn twice
            assert len(own_vectors[k][:count].unique(dim=0)) == count


def test_the_generator_decides_and_every_voxel_is_drawn_at_times():
    features, labels = make_logits(0, 1, 4, (30,)), torch.zeros(1, 30, dtype=torch.int64)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample_per_class(features, labels, classes=1, per_class=3, generator=generator)[0]

    assert torch.equal(draw(0), draw(0))
    assert len(torch.cat([draw(seed) for seed in range(100)]).unique(dim=0)) == 30


def test_every_voxel_of_a_class_is_as_likely_as_any_other():
    features = torch.eye(7)[None] + 1  # (1, 7, 7): the largest number of a vector tells its voxel
    volumes, per_class = 4000, 3  # 7 does not divide by 3
    vectors, _ = sample_per_class(
        features.expand(volumes, 7, 7), torch.zeros(volumes, 7, dtype=torch.int64), classes=1, per_class=per_class
    )
    counts = vectors.argmax(1).bincount(minlength=7).double()
    share = per_class / 7
    assert (counts / volumes - share).abs().max() < 5 * (share * (1 - share) / volumes) ** 0.5


@pytest.mark.parametrize("function", [class_means, sample_per_class])
def test_wrong_shapes_are_named(function):
    features, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels has shape"):
        function(features, labels[:, :2], classes=2)
    with pytest.raises(ValueError, match="mask is"):
        function(features, labels, classes=2, mask=torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match="features is"):
        function(features.long(), labels, classes=2)
    with pytest.raises(ValueError, match="classes is 0"):
        function(features, labels, classes=0)


def test_no_slots_are_refused():
    with pytest.raises(ValueError, match="per_class"):
        sample_per_class(torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.int64), classes=2, per_class=0)


@given(st.integers(0, 2**31), st.integers(1, 4), sizes(high=3), st.integers(1, 3), st.booleans())
def test_prototypes_equal_means_of_features_at_the_resolution_of_the_labels(seed, classes, size, factor, with_mask):
    features = make_logits(seed, 2, 5, size).double()
    fine = tuple(factor * length for length in size)
    labels = make_labels(seed, 2, classes, fine, low=-1)
    mask = make_mask(seed, 2, fine) if with_mask else None
    vectors, vector_labels = class_prototypes(features, labels, classes=classes, mask=mask, normalize=False)
    whole = class_prototypes(features, labels, classes=classes, mask=mask, normalize=False, over="volume")[0]
    assert vectors.shape == (2, 5, classes)
    repeated = features
    for axis in range(2, 2 + len(size)):
        repeated = repeated.repeat_interleave(factor, axis)
    for b in range(2):
        for k in range(classes):
            inside = (labels[b] == k) & (True if mask is None else mask[b])
            own = repeated[b][:, inside]
            assert vector_labels[b, k] == (k if inside.any() else -1)
            expected = own.mean(1) if inside.any() else torch.zeros(5, dtype=torch.float64)
            torch.testing.assert_close(vectors[b, :, k], expected)
            torch.testing.assert_close(whole[b, :, k], own.sum(1) / inside.numel())


@given(st.integers(0, 2**31), sizes(high=7), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.booleans())
def test_cells_of_a_net_that_pads_at_the_end_lie_where_its_stride_says(seed, size, strides, with_mask):
    stride = strides[: len(size)]
    coarse = tuple(-(-length // own) for length, own in zip(size, stride))
    features, labels = make_logits(seed, 2, 5, coarse).double(), make_labels(seed, 2, 3, size, low=-1)
    mask = make_mask(seed, 2, size) if with_mask else None
    how = {"classes": 3, "mask": mask, "stride": stride, "normalize": False}
    vectors, vector_labels = class_prototypes(features, labels, **how)
    whole = class_prototypes(features, labels, over="volume", **how)[0]
    for b in range(2):
        for k in range(3):
            inside = (labels[b] == k) & (True if mask is None else mask[b])
            cell = inside.nonzero() // torch.tensor(stride)
            own = features[b][:, *cell.unbind(1)]
            assert vector_labels[b, k] == (k if inside.any() else -1)
            expected = own.mean(1) if inside.any() else torch.zeros(5, dtype=torch.float64)
            torch.testing.assert_close(vectors[b, :, k], expected)
            torch.testing.assert_close(whole[b, :, k], own.sum(1) / inside.numel())


@given(st.integers(0, 2**31), st.floats(0.05, 1), st.booleans(), st.integers(2, 4))
def test_the_prototype_of_a_constant_map_does_not_depend_on_the_size_of_the_mask(seed, share, normalize, coarse):
    features = torch.arange(1, 4.0).view(1, 3, 1, 1).expand(2, 3, coarse, coarse)
    mask = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(seed)) < share
    mask[:, 0, 0] = True
    vectors, labels = class_prototypes(features, mask.long(), classes=2, normalize=normalize)
    expected = torch.arange(1, 4.0) / (14**0.5 if normalize else 1)
    assert labels[:, 1].eq(1).all()
    for b in range(2):
        torch.testing.assert_close(vectors[b, :, 1], expected)


def test_prototypes_pass_gradient_and_ignore_what_is_outside():
    features = make_logits(0, 1, 3, (2, 2)).requires_grad_()
    labels = torch.full((1, 4, 4), -1)
    labels[:, :2, :2] = 1
    vectors, vector_labels = class_prototypes(features, labels, classes=3)
    assert vector_labels.tolist() == [[-1, 1, -1]]
    assert not vectors[..., 0].any()
    vectors.square().sum().backward()
    assert features.grad.isfinite().all()
    vectors, _ = class_prototypes(features, labels, classes=3, normalize=False)
    (slope,) = torch.autograd.grad(vectors.sum(), features)
    assert (slope != 0).any(1).tolist() == [[[True, False], [False, False]]]
    spoilt = features.detach().clone()
    spoilt[..., 1, 1] = float("nan")
    assert torch.equal(class_prototypes(spoilt, labels, classes=3)[0], class_prototypes(features, labels, classes=3)[0])


def test_prototypes_are_computed_in_float32():
    features, labels = make_logits(0, 1, 3, (4, 4)), make_labels(0, 1, 2, (8, 8))
    exact = class_prototypes(features.bfloat16().float(), labels, classes=2)[0]
    with torch.autocast("cpu", torch.bfloat16):
        vectors, _ = class_prototypes(features.bfloat16(), labels, classes=2)
    assert torch.equal(vectors, exact)
    assert class_prototypes(features[:0], labels[:0], classes=2)[0].shape == (0, 3, 2)


def test_prototypes_of_what_does_not_fit_are_refused():
    features, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels has shape"):
        class_prototypes(features, labels[:, 0], classes=2)
    with pytest.raises(ValueError, match="labels has shape"):
        class_prototypes(features, labels.repeat(2, 1, 1), classes=2)
    with pytest.raises(ValueError, match=r"labels has dtype torch\.float32"):
        class_prototypes(features, labels.float(), classes=2)
    with pytest.raises(ValueError, match="mask is"):
        class_prototypes(features, labels, classes=2, mask=torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="over is 'all'"):
        class_prototypes(features, labels, classes=2, over="all")
    for stride in (3, (2, 2, 2), (2, 0), (), 2.0, (2.0, 2.0), "22"):
        with pytest.raises(ValueError, match="stride is"):
            class_prototypes(features, labels, classes=2, stride=stride)
