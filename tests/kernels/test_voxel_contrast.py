# SPDX-License-Identifier: Apache-2.0
"""Voxel contrast: the chunked path against its definition, with all gradients, and the laws both obey."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ssmis.kernels import chunked, masked, reasons, steps, voxel_contrast
from ssmis.kernels import keys as key_tables

SETTINGS = [
    pytest.param({"denominator": denominator, **rest}, id=f"{denominator}-{name}")
    for denominator in ("all", "negatives")
    for name, rest in {
        "cosine": {},
        "cold cosine": {"temperature": 0.01},  # too cold for plain exponentials: the other branch
        "product": {"normalize": False, "temperature": 1.0},
    }.items()
]
each = pytest.mark.parametrize("setting", SETTINGS)
DENOMINATORS = pytest.mark.parametrize("denominator", ["all", "negatives"])


def problem(seed, size=(63,), channels=5, keys=17, classes=3, batch=2, dtype=torch.float64, missing=0):
    """Features, labels with gaps, keys, key labels with unwritten slots (and without the last classes), weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    bank = torch.randn(keys, channels, generator=generator, dtype=torch.float64)
    key_labels = torch.randint(-1, classes - missing, (keys,), generator=generator)
    weight = torch.rand(batch, *size, generator=generator, dtype=torch.float64)
    return features.to(dtype), labels, bank.to(dtype), key_labels, weight.to(dtype)


def evaluate(features, labels, keys, key_labels, weight=None, **arguments):
    """Loss, statistics and gradients by features, keys and weight, for an upstream gradient that is not constant."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in (features, keys)]
    leaves += [] if weight is None else [weight.detach().clone()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss, stats = voxel_contrast(
        leaves[0], labels, leaves[1], key_labels, weight=leaves[2] if weight is not None else None,
        return_stats=True, **arguments,
    )  # fmt: skip
    upstream = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    (loss * upstream).sum().backward()
    return [loss.detach(), *stats, *(leaf.grad for leaf in leaves)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    for kind in (steps.All, steps.Negatives, steps.FewNegatives):
        monkeypatch.setattr(kind, "chunk", 1)  # the smallest chunk: 64 voxels, and as many in a part
        monkeypatch.setattr(kind, "part", 1)
    monkeypatch.setattr(masked, "CHUNK", 1)


@each
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("size", "keys", "missing"), [((63,), 17, 0), ((10, 10), 1, 0), ((2, 5, 4), 2, 0), ((9, 8), 257, 1), ((3, 3), 0, 0)]
)
def test_chunked_equals_reference(setting, reduction, weighted, size, keys, missing):
    features, labels, bank, key_labels, weight = problem(keys, size, keys=keys, missing=missing)
    arguments = {**setting, "reduction": reduction, "weight": weight if weighted else None}
    ours = evaluate(features, labels, bank, key_labels, impl="torch", **arguments)
    meaning = evaluate(features, labels, bank, key_labels, impl="reference", **arguments)
    for own, expected in zip(ours, meaning):
        torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-9)


@DENOMINATORS
@pytest.mark.parametrize("chunk", [1, 700, 2**20])  # several parts a block, several blocks, one
@pytest.mark.parametrize("voxels", [1, 63, 64, 100, 1000])
def test_any_number_of_voxels_and_any_chunk(monkeypatch, denominator, chunk, voxels):
    for kind in (steps.All, steps.Negatives, steps.FewNegatives):
        monkeypatch.setattr(kind, "chunk", chunk)
    features, labels, bank, key_labels, _ = problem(voxels, (voxels,), batch=1, keys=9, classes=2)
    ours, meaning = (
        evaluate(features, labels, bank, key_labels, denominator=denominator, impl=impl)
        for impl in ("torch", "reference")
    )
    for own, expected in zip(ours, meaning):
        torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-9)


@each
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_check(setting, reduction):
    features, labels, bank, key_labels, weight = problem(1, (3, 2), channels=3, keys=5, batch=1)
    setting = {**setting, "temperature": 0.5}
    leaves = tuple(t.requires_grad_() for t in (features, bank, weight))
    assert torch.autograd.gradcheck(
        lambda f, k, w: voxel_contrast(f, labels, k, key_labels, weight=w, reduction=reduction, **setting), leaves
    )


def plain(features, labels, keys, key_labels, temperature, denominator):
    """What one would write without the kernel: every similarity in memory, half precision copied to float32."""
    wide = torch.promote_types(features.dtype, torch.float32)
    features = F.normalize(features.flatten(2).transpose(1, 2).flatten(0, 1).to(wide), dim=1)
    similarity = features @ F.normalize(keys.to(wide), dim=1).T / temperature
    positive = labels.flatten()[:, None] == key_labels
    if denominator == "all":
        terms = -similarity.log_softmax(1)
    else:
        rest = similarity.masked_fill(positive, -math.inf).logsumexp(1, keepdim=True)
        terms = F.softplus(rest - similarity)
    return ((terms * positive).sum(1) / positive.sum(1)).mean()


@DENOMINATORS
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("seed", "count"), [(0, 64), (1, 64), (0, 4)])  # few keys go another way
def test_no_further_from_float64_than_plain_torch(denominator, temperature, dtype, seed, count):
    features, labels, keys, key_labels, _ = problem(seed, (200,), channels=16, keys=count, classes=2, dtype=dtype)
    labels, key_labels = labels.clamp_min(0), key_labels.clamp_min(0)

    def measure(function, dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (features, keys)]
        loss = function(leaves[0], labels, leaves[1], key_labels)
        loss.backward()
        return [loss.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    def simple(*tensors):
        return plain(*tensors, temperature, denominator)

    def ours(*tensors):
        return voxel_contrast(*tensors, temperature=temperature, denominator=denominator)

    truth = measure(simple, torch.float64)
    for own, other, exact in zip(measure(ours, dtype), measure(simple, dtype), truth):
        slack = 2e-7 * exact.abs().max()
        assert (own - exact).abs().max() <= 1.5 * (other - exact).abs().max() + slack


def test_small_losses_keep_their_digits():
    # a voxel on its key, the other class opposite: log(1 + exp(-20)), far below the rounding of 1
    features = torch.tensor([[[1.0], [0.0]]], requires_grad=True)
    loss = voxel_contrast(
        features, torch.tensor([[0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]),
        denominator="negatives",
    )  # fmt: skip
    assert loss.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-5)


@pytest.mark.parametrize(("rows", "largest"), [(1, 3), (6, 3), (64, 3), (64, 25), (64, 50), (64, 100)])
@pytest.mark.parametrize("smallest", [-30, 0])
def test_folded_logarithms_keep_their_digits(rows, largest, smallest):
    generator = torch.Generator().manual_seed(rows)
    values = torch.exp2(smallest + (largest - 1.5 - smallest) * torch.rand(rows, 50, generator=generator))
    out = torch.empty(50)
    scratch = torch.empty(2, rows, 50)
    expected = values.double().log1p().sum(0)
    steps.sum_log1p(values, largest, *scratch, out=out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@DENOMINATORS
def test_half_precision_is_computed_in_float32(dtype, denominator):
    features, labels, bank, key_labels, weight = problem(3, (8, 8), dtype=dtype)
    ours = evaluate(features, labels, bank, key_labels, weight, denominator=denominator)
    wide = evaluate(features.float(), labels, bank.float(), key_labels, weight.float(), denominator=denominator)
    assert ours[0].dtype == torch.float32
    assert torch.equal(ours[0], wide[0])
    for own, expected in zip(ours[3:], wide[3:]):
        assert own.dtype == dtype
        assert torch.equal(own, expected.to(dtype))


@DENOMINATORS
@pytest.mark.parametrize("lowest", [-1, 0])  # 0: every voxel counts, and the gradient is not packed
def test_a_coefficient_of_the_loss_is_not_rounded_to_half_precision(denominator, lowest):
    features, labels, bank, _, _ = problem(3, (8, 8), dtype=torch.bfloat16)
    labels, key_labels = labels.clamp_min(lowest), torch.arange(len(bank)) % 3
    features = features.requires_grad_()
    loss = voxel_contrast(features, labels, bank, key_labels, denominator=denominator)
    whole, part = (torch.autograd.grad(factor * loss, features, retain_graph=True)[0] for factor in (1, 0.3))
    assert torch.equal(part, (0.3 * whole.float()).bfloat16())


@DENOMINATORS
def test_autocast_changes_nothing(denominator):
    features, labels, bank, key_labels, weight = problem(4, (8, 8), dtype=torch.float32)
    for reduction in ("mean", "none"):
        arguments = {"denominator": denominator, "reduction": reduction}
        expected = evaluate(features, labels, bank, key_labels, weight, **arguments)
        with torch.autocast("cpu", torch.bfloat16):
            ours = evaluate(features, labels, bank, key_labels, weight, **arguments)
        for own, other in zip(ours, expected):
            assert torch.equal(own, other)


@each
@pytest.mark.parametrize("layout", ["channels_last", "permuted", "expanded", "sliced"])
@pytest.mark.parametrize("lowest", [-1, 0])  # 0: every voxel counts
def test_strides_do_not_matter(setting, layout, lowest):
    features, labels, bank, key_labels, _ = problem(5, (4, 3, 5))
    labels, key_labels = labels.clamp_min(lowest), key_labels.clamp_min(lowest)
    features = {
        "channels_last": features.contiguous(memory_format=torch.channels_last_3d),
        "permuted": features.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0),
        "expanded": features[:1].expand(2, -1, -1, -1, -1),
        "sliced": torch.cat([features, features], 4)[..., :5],
    }[layout]
    ours = evaluate(features, labels, bank, key_labels, **setting)
    for own, expected in zip(ours, evaluate(features.contiguous(), labels, bank, key_labels, **setting)):
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-10)


@each
@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_order_and_orientation_do_not_matter(setting, seed):
    features, labels, bank, key_labels, _ = problem(seed, (3, 4))

    def loss(features, labels, bank, key_labels):
        return voxel_contrast(features, labels, bank, key_labels, **setting)

    generator = torch.Generator().manual_seed(seed)
    expected = loss(features, labels, bank, key_labels)
    order = torch.randperm(len(bank), generator=generator)
    torch.testing.assert_close(loss(features, labels, bank[order], key_labels[order]), expected)
    torch.testing.assert_close(loss(features.flip(0, 2), labels.flip(0, 1), bank, key_labels), expected)
    names = torch.tensor([7, 2, 100, -1])  # any integers will do; -1 maps to itself
    torch.testing.assert_close(loss(features, names[labels], bank, names[key_labels]), expected)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    turned = torch.einsum("ef,bfhw->behw", rotation, features)
    torch.testing.assert_close(loss(turned, labels, bank @ rotation.T, key_labels), expected)


@DENOMINATORS
@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
@settings(max_examples=10)
def test_length_does_not_matter_and_the_gradient_is_orthogonal(denominator, seed, scale):
    features, labels, bank, key_labels, _ = problem(seed, (3, 4))
    expected = evaluate(features, labels, bank, key_labels, denominator=denominator)
    scaled = evaluate(scale * features, labels, bank / scale, key_labels, denominator=denominator)
    torch.testing.assert_close(scaled[0], expected[0])
    torch.testing.assert_close(scale * scaled[3], expected[3], atol=1e-10, rtol=1e-6)
    assert (expected[3] * features).sum(1).abs().max() < 1e-10
    assert (expected[4] * bank).sum(1).abs().max() < 1e-10


@given(st.integers(0, 2**31), st.integers(2, 5))
@settings(max_examples=20)
def test_doubling_the_keys_adds_log_2_to_all_and_doubles_the_odds_of_negatives(seed, classes):
    features, labels, bank, _, _ = problem(seed, (4, 4), keys=classes, classes=classes)
    labels, key_labels = labels.clamp_min(0), torch.arange(classes)
    twice = torch.cat([bank, bank]), torch.cat([key_labels, key_labels])
    once = voxel_contrast(features, labels, bank, key_labels)
    torch.testing.assert_close(voxel_contrast(features, labels, *twice), once + math.log(2))
    # one key a class: log(1 + R / e^s) becomes the mean of twice log(1 + 2 R / e^s)
    once, both = (
        voxel_contrast(features, labels, *pair, denominator="negatives", reduction="none")
        for pair in ((bank, key_labels), twice)
    )
    torch.testing.assert_close(both.expm1(), 2 * once.expm1())


@given(st.integers(0, 2**31), st.integers(2, 5))
@settings(max_examples=20)
def test_doubling_more_keys_changes_negatives_by_at_most_log_2_and_positives_alone_change_nothing(seed, classes):
    features, labels, bank, key_labels, _ = problem(seed, (4, 4), classes=classes)

    def loss(*pair, labels=labels):
        return voxel_contrast(features, labels, *pair, denominator="negatives", reduction="none")

    once, both = loss(bank, key_labels), loss(torch.cat([bank, bank]), torch.cat([key_labels, key_labels]))
    assert (both >= once - 1e-12).all()
    assert (both <= once + math.log(2) + 1e-12).all()
    own = key_labels == 0
    more = torch.cat([bank, bank[own]]), torch.cat([key_labels, key_labels[own]])
    torch.testing.assert_close(loss(*more, labels=0 * labels), loss(bank, key_labels, labels=0 * labels))


@DENOMINATORS
@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_hot_counts_the_keys_and_cold_takes_the_nearest(denominator, seed):
    features, labels, bank, _, _ = problem(seed, (3, 4), classes=2)
    labels, key_labels = labels.clamp_min(0), torch.arange(len(bank)) % 2

    def loss(temperature):
        return voxel_contrast(
            features, labels, bank, key_labels, temperature=temperature, denominator=denominator, reduction="none"
        )

    cosine = torch.einsum("me,behw->mbhw", F.normalize(bank, dim=1), F.normalize(features, dim=1))
    positive = key_labels[:, None, None, None] == labels
    if denominator == "all":
        hot = torch.full_like(loss(1.0), math.log(len(bank)))
        cold = cosine.amax(0) - (cosine * positive).sum(0) / positive.sum(0)
    else:
        hot = (~positive).sum(0).double().log1p()
        gap = cosine.masked_fill(positive, -math.inf).amax(0) - cosine
        cold = (gap.clamp_min(0) * positive).sum(0) / positive.sum(0)
    torch.testing.assert_close(loss(1e6), hot, atol=1e-5, rtol=0)
    torch.testing.assert_close(1e-5 * loss(1e-5), cold, atol=1e-3, rtol=0)


@given(st.integers(2, 40), st.floats(0.05, 1.0))
@settings(max_examples=20)
def test_negatives_vanish_when_the_classes_are_apart_and_all_stays_at_its_floor(keys, temperature):
    key_labels = torch.arange(keys) % 2
    sign = 1.0 - 2.0 * key_labels.double()
    bank = torch.stack([sign, torch.zeros_like(sign)], 1)
    features, labels = torch.tensor([[[3.0], [0.0]]], dtype=torch.float64), torch.tensor([[0]])
    own, others = int((key_labels == 0).sum()), int((key_labels == 1).sum())
    apart = others * math.exp(-2 / temperature)

    def loss(denominator):
        return voxel_contrast(features, labels, bank, key_labels, temperature=temperature, denominator=denominator)

    assert loss("negatives").item() == pytest.approx(math.log1p(apart), rel=1e-9)
    assert loss("all").item() == pytest.approx(math.log(own + apart), rel=1e-9, abs=1e-12)


@each
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_what_does_not_count_has_no_say(setting, impl):
    features, labels, bank, key_labels, weight = problem(7, (6, 6), missing=1)
    expected = evaluate(features, labels, bank, key_labels, weight, impl=impl, **setting)
    away = (labels < 0) | (labels == 2)  # ignored, or of a class without a key
    spoilt = features.masked_fill(away[:, None], math.nan)
    keys = bank.masked_fill((key_labels < 0)[:, None], math.nan)
    spoilt_weight = weight.masked_fill(away, math.nan)
    ours = evaluate(spoilt, labels, keys, key_labels, spoilt_weight, impl=impl, **setting)
    for own, other in zip(ours, expected):
        torch.testing.assert_close(own, other, atol=0, rtol=0)
    assert not ours[3].movedim(1, -1)[away].any()
    assert not ours[4][key_labels < 0].any()
    assert not ours[5][away].any()
    assert ours[1] == (~away).sum()
    assert ours[2] == (labels == 2).sum()


@DENOMINATORS
@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(
    "case", ["no keys", "unwritten bank", "nothing labelled", "zero weight", "other classes", "no volumes"]
)
@pytest.mark.parametrize("spoilt", [False, True])
def test_nothing_to_do_is_an_attached_zero(denominator, impl, case, spoilt):
    features, labels, bank, key_labels, weight = problem(8, (4, 4))
    bank, key_labels = (bank[:0], key_labels[:0]) if case == "no keys" else (bank, key_labels)
    key_labels = key_labels.fill_(-1) if case == "unwritten bank" else key_labels
    labels = labels.fill_(-1) if case == "nothing labelled" else labels
    labels = labels.fill_(9) if case == "other classes" else labels
    weight = weight * 0 if case == "zero weight" else weight
    if case == "no volumes":
        features, labels, weight = features[:0], labels[:0], weight[:0]
    if spoilt and case != "zero weight":  # whatever stands where nothing counts
        features, weight = features + math.nan, weight + math.nan
    for reduction in ("mean", "sum", "none"):
        loss, *_, by_features, by_keys, by_weight = evaluate(
            features, labels, bank, key_labels, weight, denominator=denominator, impl=impl, reduction=reduction
        )
        assert not loss.any()
        assert not by_features.any()
        assert not by_keys.any()
        assert by_weight.isfinite().all()


def test_one_class_only_counts_for_all_and_is_skipped_for_negatives():
    features, labels, bank, _, _ = problem(9, (4, 4))
    for denominator, counted in (("all", True), ("negatives", False)):
        loss, stats = voxel_contrast(
            features, labels.clamp(0, 0), bank, torch.zeros(len(bank), dtype=torch.int64),
            denominator=denominator, return_stats=True,
        )  # fmt: skip
        assert bool(loss > 0) == counted
        assert (stats.valid.item(), stats.skipped.item()) == ((32, 0) if counted else (0, 32))


@each
@pytest.mark.parametrize("keys", [6, 17])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1e4, 1e15])
def test_extreme_features_give_numbers(setting, size, keys):
    features, labels, bank, key_labels, _ = problem(10, (4, 4), keys=keys, dtype=torch.float32)
    if not setting.get("normalize", True) and size > 1e4:
        size = 1e4
    loss, _, _, by_features, by_keys = evaluate(size * features, labels, bank, key_labels, **setting)
    assert loss.isfinite()
    assert by_features.isfinite().all()
    assert by_keys.isfinite().all()


@DENOMINATORS
def test_training_parts_the_classes_and_gathers_each(denominator):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 40, generator=generator, requires_grad=True)
    labels = torch.arange(40)[None] % 2
    key_labels = torch.arange(8) % 2
    keys = F.normalize(torch.eye(4)[key_labels] + 0.2 * torch.randn(8, 4, generator=generator), dim=1)

    def spread():
        own = F.normalize(features.detach()[0].T, dim=1)
        distance = torch.cdist(own, own)
        same = labels[0][:, None] == labels[0]
        return distance[~same].mean(), distance[same].mean()

    between, within = spread()
    for _ in range(30):
        (gradient,) = torch.autograd.grad(
            voxel_contrast(features, labels, keys, key_labels, denominator=denominator, reduction="sum"),
            features,
        )
        features.data -= 0.05 * gradient
    later_between, later_within = spread()
    assert later_between > between
    assert later_within < within


@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("square", [True, False])
def test_a_second_derivative_is_refused(denominator, reduction, place, square):
    features, labels, bank, key_labels, weight = problem(11, (4, 4))
    leaves = [features, bank, weight]
    leaf = leaves[place].requires_grad_()
    loss = voxel_contrast(
        features, labels, bank, key_labels, weight=weight, denominator=denominator, reduction=reduction
    )
    loss = loss.square().sum() if square else loss.sum()  # with and without a graph of the upstream gradient
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert gradient.abs().sum() > 0
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient.square().sum() + 2 * leaf.sum()).backward()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_derivative_in_forward_mode_is_refused_and_not_zero(place):
    features, labels, bank, key_labels, weight = problem(11, (4, 4))

    def loss(value, impl):
        leaves = [features, bank, weight]
        leaves[place] = value
        return voxel_contrast(leaves[0], labels, leaves[1], key_labels, weight=leaves[2], impl=impl)

    value = [features, bank, weight][place]
    _, tangent = torch.func.jvp(lambda value: loss(value, "reference"), (value,), (torch.rand_like(value),))
    assert tangent != 0
    with pytest.raises(RuntimeError, match="no derivative in forward mode"):
        torch.func.jvp(lambda value: loss(value, "torch"), (value,), (torch.rand_like(value),))


@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("counts", ["some", "all", "none"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at it
def test_the_operator_keeps_its_promises_to_torch(denominator, reduction, counts):
    features, labels, bank, key_labels, weight = problem(12, (16,), dtype=torch.float32)
    if counts == "all":
        labels, key_labels = labels.clamp_min(0), torch.arange(len(bank)) % 3
    elif counts == "none":
        labels = torch.full_like(labels, -1)
    arguments = (
        features.requires_grad_(), labels, bank.requires_grad_(), key_labels, weight.requires_grad_(),
        0.1, -1, True, denominator, reduction, [True, True, True],
    )  # fmt: skip
    result = torch.library.opcheck(torch.ops.ssmis.voxel_contrast.default, arguments)
    assert len(result) == 4
    assert set(result.values()) == {"SUCCESS"}


@DENOMINATORS
def test_a_gradient_handed_over_as_it_was_saved_is_nobody_elses(denominator):
    features, labels, bank, key_labels, _ = problem(3, (40,), dtype=torch.float32)
    features, labels = features.requires_grad_(), labels.clamp_min(0)  # all count: nothing is packed
    key_labels = torch.arange(len(bank)) % 3
    loss = voxel_contrast(features, labels, bank, key_labels, denominator=denominator)
    (expected,) = torch.autograd.grad(loss / 2, features, retain_graph=True)
    expected = 2 * expected
    torch.autograd.grad(loss, features, retain_graph=True)[0].zero_()
    for _ in range(3):
        loss.backward(retain_graph=True)  # adds to the gradient in place
    loss.backward()
    assert torch.allclose(features.grad, 4 * expected, rtol=1e-6, atol=0)
    loss = voxel_contrast(features, labels, bank, key_labels, denominator=denominator)
    assert torch.equal(torch.autograd.grad(loss, features)[0], expected)


@DENOMINATORS
@pytest.mark.parametrize("lowest", [-1, 0])  # 0: every voxel counts, and the gradient may be handed over
def test_a_gradient_asked_for_by_itself_has_no_history_and_may_be_a_batch(denominator, lowest):
    features, labels, bank, key_labels, _ = problem(3, (40,), dtype=torch.float32)
    labels, key_labels = labels.clamp_min(lowest), torch.arange(len(bank)) % 3
    features = features.requires_grad_()

    def loss():
        return voxel_contrast(features, labels, bank, key_labels, denominator=denominator)

    (gradient,) = torch.autograd.grad(loss(), features)
    assert not gradient.requires_grad
    (batch,) = torch.autograd.grad(loss(), features, torch.tensor([1.0, 2.0, 1.0]), is_grads_batched=True)
    torch.testing.assert_close(batch, torch.stack([gradient, 2 * gradient, gradient]))


@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_it_compiles_into_one_graph(denominator, reduction, dynamic):
    features, labels, bank, key_labels, weight = problem(13, (4, 3, 2), dtype=torch.float32)

    def loss(features, keys):
        scaled = voxel_contrast(
            2 * features, labels, keys, key_labels, weight=weight, denominator=denominator, reduction=reduction
        )
        return scaled.square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
        leaves = [t.clone().requires_grad_() for t in (features, bank)]
        value = function(*leaves)
        value.backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for own, expected in zip(*results):
        torch.testing.assert_close(own, expected)


def test_every_output_is_written():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    try:
        for denominator in ("all", "negatives"):
            for part in evaluate(*problem(14, (5, 5), dtype=torch.float32), denominator=denominator):
                assert part.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_without_gradient_nothing_is_recorded():
    features, labels, bank, key_labels, _ = problem(15, (4, 4))
    expected = voxel_contrast(features.requires_grad_(), labels, bank, key_labels)
    with torch.no_grad():
        loss = voxel_contrast(features, labels, bank, key_labels)
    assert expected.requires_grad
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("setting", SETTINGS[3:])
@pytest.mark.parametrize("with_keys", [False, True])
def test_few_keys_with_masks_give_the_same_as_class_by_class(monkeypatch, setting, with_keys):
    features, labels, bank, key_labels, weight = problem(24, (140,), keys=11)
    results = []
    for few in (0, 16):
        monkeypatch.setattr(chunked, "_FEW", few)
        leaves = [features.clone().requires_grad_(), bank.clone().requires_grad_(with_keys)]
        loss = voxel_contrast(leaves[0], labels, leaves[1], key_labels, weight=weight, **setting)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for own, expected in zip(*results):
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1, 2])
def test_what_is_not_kept_is_zero_even_if_it_was_no_number(dtype, spread):
    values = torch.tensor([[1.5, torch.nan, -torch.inf, -0.0, 2.5, torch.nan]], dtype=dtype)[:, ::spread]
    mask = torch.tensor([[True, False, False, True, False, False]])[:, ::spread]
    kept = key_tables.keep(values, mask)
    assert kept.dtype == dtype
    assert torch.equal(kept, values.where(mask, 0))


@each
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_inference_mode_do_not_matter(setting, threads):
    features, labels, bank, key_labels, _ = problem(20, (4, 40))
    expected = voxel_contrast(features, labels, bank, key_labels, **setting)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            ours = voxel_contrast(features.clone(), labels, bank, key_labels, **setting)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(ours, expected)


def test_a_failure_in_a_thread_is_raised_and_leaves_the_number_of_threads_alone():
    def work(share):
        raise ZeroDivisionError(str(share))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            chunked._spread(work, [0, 1, 2])
        with ThreadPoolExecutor(1) as pool:  # the default of threads to come
            seen = [torch.get_num_threads(), pool.submit(torch.get_num_threads).result()]
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]


@DENOMINATORS
def test_gradients_repeat_bit_by_bit_also_in_threads(denominator):
    tensors = problem(21, (200,), keys=40)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (evaluate(*tensors, denominator=denominator) for _ in range(4))
    finally:
        torch.set_num_threads(before)
    for other in others:
        for own, expected in zip(other, first):
            assert torch.equal(own, expected)


@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_gradients_do_not_depend_on_what_else_is_wanted(denominator, reduction, needs):
    features, labels, bank, key_labels, weight = problem(22, (70,))
    arguments = {"denominator": denominator, "reduction": reduction}
    every = evaluate(features, labels, bank, key_labels, weight, **arguments)
    leaves = [t.clone().requires_grad_(bool(need)) for t, need in zip((features, bank, weight), needs)]
    loss = voxel_contrast(leaves[0], labels, leaves[1], key_labels, weight=leaves[2], **arguments)
    upstream = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    (loss * upstream).sum().backward()
    for leaf, expected, need in zip(leaves, every[3:], needs):
        if need:
            assert torch.equal(leaf.grad, expected)
        else:
            assert leaf.grad is None


@DENOMINATORS
def test_strides_of_labels_and_weights_do_not_matter(denominator):
    features, labels, bank, key_labels, weight = problem(23, (6, 8))
    expected = evaluate(features, labels, bank, key_labels, weight, denominator=denominator)

    def spread(tensor):
        return torch.stack([tensor, tensor], -1)[..., 0].transpose(1, 2).contiguous().transpose(1, 2)

    ours = evaluate(
        features, spread(labels), bank, spread(key_labels[None, None])[0, 0], spread(weight), denominator=denominator
    )
    for own, other in zip(ours, expected):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-10)


def test_triton_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    features, labels, bank, key_labels, _ = problem(16, (4, 4))
    assert len(reasons(features, bank)) >= 3
    with pytest.raises(RuntimeError, match=r"not on a GPU.*features is torch.float64.*keys is torch.float64"):
        voxel_contrast(features, labels, bank, key_labels, impl="triton")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"features": torch.zeros(2, 5)}, "features is"),
        ({"features": torch.zeros(2, 5, 4, dtype=torch.int64)}, "features is"),
        ({"features": torch.zeros(2, 0, 4), "keys": torch.zeros(3, 0)}, "E > 0"),
        ({"labels": torch.zeros(2, 1, 4, dtype=torch.int64)}, "labels has shape"),
        ({"labels": torch.zeros(2, 4)}, "labels has dtype"),
        ({"keys": torch.zeros(3, 6)}, r"keys is .* expected floating point \(M, 5\)"),
        ({"key_labels": torch.zeros(4, dtype=torch.int64)}, "key_labels is"),
        ({"key_labels": torch.zeros(3)}, "key_labels is"),
        ({"key_labels": torch.zeros(3, dtype=torch.complex64)}, "key_labels is"),
        ({"weight": torch.ones(2, 5)}, "weight is"),
        ({"temperature": 0.0}, "temperature is"),
        ({"temperature": -0.1}, "temperature is"),
        ({"temperature": math.nan}, "temperature is"),
        ({"temperature": math.inf}, "temperature is"),
        ({"temperature": torch.tensor(0.1, requires_grad=True)}, "temperature is a tensor"),
        ({"temperature": "0.1"}, "temperature is '0.1'; expected a finite number"),
        ({"temperature": None}, "temperature is None"),
        ({"ignore_index": None}, "ignore_index is None; expected an integer"),
        ({"ignore_index": 1.5}, "ignore_index is 1.5"),
        ({"ignore_index": 2**64}, "ignore_index is 18446744073709551616"),
        ({"normalize": "no"}, "normalize is 'no'; expected True or False"),
        ({"features": [[0.0]]}, "features is of type list; expected a tensor"),
        ({"keys": None}, "keys is of type NoneType"),
        ({"weight": 1.0}, "weight is of type float"),
        ({"denominator": "some"}, "denominator is"),
        ({"reduction": "pooled"}, "reduction is"),
        ({"impl": "cuda"}, "impl is"),
        ({"keys": torch.zeros(3, 5, device="meta")}, "keys is on meta"),
    ],
)
def test_wrong_arguments_are_named(change, match):
    arguments = {
        "features": torch.zeros(2, 5, 4), "labels": torch.zeros(2, 4, dtype=torch.int64),
        "keys": torch.zeros(3, 5), "key_labels": torch.zeros(3, dtype=torch.int64), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        voxel_contrast(**arguments)


def test_numbers_of_numpy_are_numbers():
    features, labels = torch.eye(2)[:, :, None], torch.tensor([[0], [1]])
    given = {"temperature": np.float32(0.5), "ignore_index": np.int64(-1)}
    bank = torch.eye(2), torch.tensor([0, 1])
    expected = voxel_contrast(features, labels, *bank, temperature=0.5)
    torch.testing.assert_close(voxel_contrast(features, labels, *bank, **given), expected)


def tables(bank, key_labels, labels, setting):
    keys = key_tables.prepare_keys(
        bank, key_labels, ignore_index=-1, normalize=setting.get("normalize", True), dtype=bank.dtype
    )
    return keys, *key_tables.classify(labels, keys, ignore_index=-1, denominator=setting["denominator"])


@each
@pytest.mark.parametrize("classes", [1, 3])
def test_masks_with_slots_left_in_place_as_on_a_device_give_the_same(setting, classes):
    features, labels, bank, key_labels, weight = problem(17, (140,), classes=classes)
    arguments = {"temperature": 0.1, "normalize": True, **setting}
    live = (key_labels >= 0).nonzero().squeeze(1)
    keys, own_classes, counted = tables(bank, key_labels, labels, setting)
    scale = weight * counted
    ours = masked.contrast(features, own_classes, counted, keys, scale=scale, **arguments)
    packed, packed_classes, packed_counted = tables(bank[live], key_labels[live], labels, setting)
    assert torch.equal(counted, packed_counted)
    losses, by_features, by_keys = chunked.contrast(
        features, packed_classes, packed_counted, packed, scale=scale, **arguments
    )
    for own, expected in zip(ours, (losses, by_features, torch.zeros_like(bank).index_copy(0, live, by_keys))):
        torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-9)


@DENOMINATORS
@given(st.integers(0, 2**31), st.integers(1, 5))
@settings(max_examples=20)
def test_classes_found_as_on_a_device_are_the_same(denominator, seed, classes):
    _, labels, bank, key_labels, _ = problem(seed, (30,), keys=6, classes=classes)
    keys, own_classes, counted = tables(bank, key_labels, labels, {"denominator": denominator})
    countable = (keys.counts > 0) & ((denominator == "all") | (keys.counts < keys.counts.sum()))
    others, found = key_tables._search(labels, keys, countable)
    assert torch.equal(counted, found & (labels >= 0))
    assert torch.equal(own_classes[counted].long(), others[counted])


@each
@pytest.mark.parametrize("storage", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gaps", [[1.0, 0.5], [0.5, 0.0], [0.5, 0.3]])  # volumes of which all count, some, none
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_packed_gradient_unpacks_to_the_same(setting, storage, gaps, channels_last):
    features, labels, bank, key_labels, weight = problem(25, (140,), keys=40)
    labels = labels.clamp_min(0).where(torch.rand(2, 140) < torch.tensor(gaps)[:, None], -1)
    if channels_last:
        features = features.transpose(1, 2).contiguous().transpose(1, 2)
    live = key_labels >= 0
    keys, classes, counted = tables(bank[live], key_labels[live], labels, setting)
    arguments = {"temperature": 0.1, "normalize": True, **setting, "scale": weight * counted, "storage": storage}
    expected = chunked.contrast(features, classes, counted, keys, **arguments)
    places = torch.full((2, 140), 10**6, dtype=torch.int32)
    losses, packed, by_keys = chunked.contrast(features, classes, counted, keys, places=places, **arguments)
    unused = torch.ones(2, 140, dtype=torch.bool).scatter(1, places.long(), False)
    packed.masked_fill_(unused[:, None], torch.nan)  # never read
    ours = chunked.unpack(packed, places, torch.tensor(1.0, dtype=torch.float64), storage)
    assert torch.equal(losses, expected[0])
    assert torch.equal(ours, expected[1])
    assert ours.stride() == features.stride()
    assert torch.equal(by_keys, expected[2])
    assert not ours.movedim(1, -1)[~counted].any()
    halved = chunked.unpack(packed, places, torch.tensor(0.5), torch.float32)
    assert torch.equal(halved, (0.5 * expected[1]).float())


@each
def test_without_the_gradient_of_the_keys_the_rest_is_the_same(setting):
    features, labels, bank, key_labels, weight = problem(19, (140,))
    live = key_labels >= 0
    keys, classes, counted = tables(bank[live], key_labels[live], labels, setting)
    arguments = {"temperature": 0.1, "normalize": True, **setting, "scale": weight * counted}
    full, without = (
        chunked.contrast(features, classes, counted, keys, with_keys=with_keys, **arguments)
        for with_keys in (True, False)
    )
    assert full[2].any()
    assert not without[2].any()
    for own, expected in zip(without[:2], full):
        torch.testing.assert_close(own, expected, atol=0, rtol=0)


@pytest.mark.gpu
@each
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_device_agrees_and_never_waits_for_the_host(setting, reduction):
    tensors = problem(18, (8, 8, 8), dtype=torch.float32)
    expected = evaluate(*tensors, reduction=reduction, **setting)
    moved = [tensor.to("cuda") for tensor in tensors]
    evaluate(*moved, reduction=reduction, **setting)  # loads libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = evaluate(*moved, reduction=reduction, **setting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for own, other in zip(ours, expected):
        torch.testing.assert_close(own.cpu(), other, atol=1e-5, rtol=1e-4)
