# SPDX-License-Identifier: Apache-2.0
"""Contrast of prototypes with a bank and of regions between networks: brute force, laws, empty cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_labels, make_logits
from torch import nn
from torch.nn import functional as F

from ssmis.losses import prototype_contrast, region_contrast
from ssmis.memory import class_prototypes

SEEDS = st.integers(0, 2**31)


def cosine(a, b, normalize=True):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) if normalize else dot


def draw(seed, classes=3, keys=12):
    features = make_logits(seed, 2, 5, (4,)).double()
    labels = make_labels(seed, 2, classes, (4,), low=-1)
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(keys, 5, generator=generator, dtype=torch.float64)
    return features, labels, bank, torch.randint(-1, classes, (keys,), generator=generator)


@given(SEEDS, st.booleans(), st.sampled_from([0.3, 2.0]))
def test_prototype_contrast_equals_brute_force(seed, normalize, temperature):
    features, labels, keys, key_labels = draw(seed)
    unit = F.normalize(keys, dim=1) if normalize else keys
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        for v, label in enumerate(labels[b].tolist()):
            own = unit[key_labels == label].tolist()
            others = unit[(key_labels != label) & (key_labels >= 0)].tolist()
            if label < 0 or not own or not others:
                continue
            centre, vector = torch.tensor(own).mean(0).tolist(), features[b, :, v].tolist()
            scores = [cosine(vector, key, normalize) / temperature for key in [centre, *others]]
            expected[b, v] = math.log(sum(math.exp(s - scores[0]) for s in scores))
    settings = {"temperature": temperature, "normalize": normalize}
    values = prototype_contrast(features, labels, keys, key_labels, reduction="none", **settings)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-7)


@given(SEEDS)
def test_skipped_prototypes_and_slots_have_no_say_and_no_gradient(seed):
    features, labels, keys, key_labels = draw(seed)
    before = prototype_contrast(features, labels, keys, key_labels)
    spoilt = keys.where((key_labels >= 0)[:, None], torch.nan)
    noise = features.masked_fill((labels < 0)[:, None], 7.0).requires_grad_()
    after = prototype_contrast(noise, labels, spoilt, key_labels)
    after.backward()
    assert torch.equal(before, after)
    assert not noise.grad.movedim(1, -1)[labels < 0].any()


@pytest.mark.parametrize("key_labels", [[-1, -1, -1], [1, 1, 1]])
def test_an_empty_bank_and_a_bank_of_one_class_give_an_attached_zero(key_labels):
    features, labels, _, _ = draw(0)
    loss = prototype_contrast(features.requires_grad_(), labels, torch.ones(3, 5).double(), torch.tensor(key_labels))
    loss.backward()
    assert loss == 0
    assert not features.grad.any()


@given(SEEDS)
def test_descent_on_the_prototype_contrast_moves_to_the_own_class(seed):
    features = make_logits(seed, 1, 4, (1,)).double().requires_grad_()
    keys, key_labels = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, -1])
    for _ in range(40):
        loss = prototype_contrast(features, torch.zeros(1, 1, dtype=torch.int64), keys, key_labels)
        (slope,) = torch.autograd.grad(loss, features)
        features = F.normalize(features - slope, dim=1).detach().requires_grad_()
    assert features.flatten()[:3].argmax() == 0


def test_wrong_keys_are_named():
    features, labels, keys, key_labels = draw(0)
    with pytest.raises(ValueError, match=r"keys is .* expected floating point \(M, 5\)"):
        prototype_contrast(features, labels, keys[:, :4], key_labels)
    with pytest.raises(ValueError, match="key_labels is"):
        prototype_contrast(features, labels, keys, key_labels[:-1])
    with pytest.raises(ValueError, match="temperature is 0"):
        prototype_contrast(features, labels, keys, key_labels, temperature=0)
    with pytest.raises(ValueError, match="features is"):
        prototype_contrast(features[0], labels, keys, key_labels)


def cell_means(features, cells):
    """`[cell][channel]` of a map `(E, H, W)` whose sides divide."""
    height, width = features.shape[1] // cells, features.shape[2] // cells
    blocks = [
        features[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
        for i in range(cells)
        for j in range(cells)
    ]
    return [block.flatten(1).mean(1).tolist() for block in blocks]


@given(SEEDS, st.booleans(), st.booleans(), st.integers(1, 3))
def test_region_contrast_equals_brute_force(seed, normalize, symmetric, cells):
    first, second = (make_logits(seed + i, 2, 4, (6, 6)).double() for i in range(2))
    expected = []
    for own, peer in zip(first, second):
        a, b = cell_means(own, cells), cell_means(peer, cells)
        row = []
        for i in range(len(a)):
            asked = [cosine(a[i], other, normalize) / 0.3 for other in b]
            back = [cosine(other, b[i], normalize) / 0.3 for other in a]
            losses = [math.log(sum(math.exp(s - scores[i]) for s in scores)) for scores in (asked, back)]
            row.append(sum(losses) / 2 if symmetric else losses[0])
        expected.append(row)
    values = region_contrast(first, second, cells=cells, normalize=normalize, symmetric=symmetric, reduction="none")
    torch.testing.assert_close(values.flatten(1), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


@given(SEEDS, st.sampled_from([2, 3]), st.integers(2, 3))
def test_region_contrast_is_lower_for_identical_than_for_shuffled_features(seed, dims, cells):
    coarse = make_logits(seed, 2, 4, (cells,) * dims).double()
    order = torch.randperm(cells**dims, generator=torch.Generator().manual_seed(seed))
    if torch.equal(order, torch.arange(cells**dims)):
        order = order.roll(1)
    shuffled = coarse.flatten(2)[..., order].view_as(coarse)
    same, other = (region_contrast(coarse, maps, cells=cells) for maps in (coarse, shuffled))
    assert same < other
    scaled = region_contrast(coarse, 5 * coarse, cells=cells)
    torch.testing.assert_close(scaled, same)


@given(SEEDS)
def test_region_contrast_is_symmetric_and_trains_both(seed):
    first, second = (make_logits(seed + i, 2, 4, (6, 6)).double().requires_grad_() for i in range(2))
    torch.testing.assert_close(region_contrast(first, second), region_contrast(second, first))
    for symmetric in (True, False):
        slopes = torch.autograd.grad(region_contrast(first, second, symmetric=symmetric), (first, second))
        assert all(slope.abs().max() > 0 for slope in slopes)


def test_features_without_a_direction_get_no_gradient():
    """Such as those of a layer that begins with zeros; dividing by the least length would give them 1e12."""
    layer = nn.Conv2d(3, 5, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    features = layer(torch.randn(2, 3, 9, 9))
    region_contrast(features, torch.randn(2, 5, 9, 9)).backward()
    assert float(layer.weight.grad.abs().max()) == 0
    for make in (
        lambda x: prototype_contrast(x, torch.tensor([[0, 1]]), torch.randn(4, 5), torch.tensor([0, 0, 1, 1])),
        lambda x: class_prototypes(x, torch.tensor([[0, 1]]), classes=2)[0].square().sum(),
    ):
        vectors = torch.randn(1, 5, 2)
        vectors[0, :, 0] = 0
        vectors.requires_grad_()
        value = make(vectors)
        value.backward()
        assert torch.isfinite(value)
        assert float(vectors.grad[0, :, 0].abs().max()) == 0


def test_both_networks_must_have_the_same_width():
    with pytest.raises(ValueError, match=r"second_features has shape \(1, 3, 6, 6\); expected \(1, 4, 6, 6\)"):
        region_contrast(torch.zeros(1, 4, 6, 6), torch.zeros(1, 3, 6, 6))
    with pytest.raises(ValueError, match="cells is 0"):
        region_contrast(torch.zeros(1, 4, 6, 6), torch.zeros(1, 4, 6, 6), cells=0)
