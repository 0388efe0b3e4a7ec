# SPDX-License-Identifier: Apache-2.0
"""Device code of voxel contrast against its definition in float64: in Triton's interpreter, or on a GPU.

    TRITON_INTERPRET=1 pytest tests/kernels

The interpreter must be chosen before Triton is imported, hence a process of its own. It has no bfloat16.
"""

import os
from itertools import cycle, product

import pytest
import torch
from torch.nn import functional as F

from ssmis.kernels import reasons, voxel_contrast

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy, in place of the GPU

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF = {torch.float16, torch.bfloat16}
TARGETS = [
    *(pytest.param("cpu", dtype, id=f"interpreter-{dtype}") for dtype in (torch.float32, torch.float16)),
    *(
        pytest.param("cuda", dtype, id=f"gpu-{dtype}", marks=pytest.mark.gpu)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
]
on_targets = pytest.mark.parametrize(("device", "dtype"), TARGETS)
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
DENOMINATORS = pytest.mark.parametrize("denominator", ["all", "negatives"])


@pytest.fixture(autouse=True)
def _runs_here(request):
    device = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    if device == "cpu" and not INTERPRETED:
        pytest.skip("needs Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported)")
    if device == "cuda" and INTERPRETED:
        pytest.skip("this process interprets: run again without TRITON_INTERPRET")


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def problem(size, channels, keys, *, classes=3, missing=0, batch=2, seed=0, layout="contiguous", dtype, device="cpu"):
    """Features, labels with gaps, keys, key labels with unwritten slots (and without the last classes), weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, *size, generator=generator).to(device, dtype)
    if layout == "channels_last":
        features = features.movedim(1, -1).contiguous().movedim(-1, 1)
    labels = torch.randint(-1, classes, (batch, *size), generator=generator)
    bank = torch.randn(keys, channels, generator=generator)
    key_labels = torch.randint(-1, classes - missing, (keys,), generator=generator)
    weight = torch.rand(batch, *size, generator=generator)
    return features, labels.to(device), bank.to(device, dtype), key_labels.to(device), weight.to(device)


def evaluate(features, labels, keys, key_labels, weight=None, *, function=voxel_contrast, needs=(1, 1, 1), **arguments):
    """Loss, statistics and gradients by features, keys and weight, for an upstream gradient that is not constant."""
    leaves = [
        t if t is None else t.detach().clone(memory_format=torch.preserve_format) for t in (features, keys, weight)
    ]
    leaves = [leaf if leaf is None else leaf.requires_grad_(bool(need)) for leaf, need in zip(leaves, needs)]
    found = function(leaves[0], labels, leaves[1], key_labels, weight=leaves[2], return_stats=True, **arguments)
    loss, stats = found
    upstream = torch.linspace(0.5, 2, loss.numel(), device=loss.device, dtype=loss.dtype).view(loss.shape)
    (loss * upstream).sum().backward()
    return [loss.detach(), *stats, *(None if leaf is None else leaf.grad for leaf in leaves)]


def exactly(tensors, **arguments):
    """The definition, on the same numbers in float64."""
    tensors = [
        t.cpu().double() if t is not None and t.is_floating_point() else t if t is None else t.cpu() for t in tensors
    ]
    return evaluate(*tensors, impl="reference", **arguments)


def plain(features, labels, keys, key_labels, *, weight, temperature, denominator, normalize, reduction, return_stats):
    """What one would write without the kernel, every similarity in memory, in the dtype of the features."""
    order = [0, *range(2, features.ndim), 1]
    features, labels = features.permute(order).flatten(0, -2), labels.flatten()
    live = key_labels >= 0
    keys, key_labels = keys[live], key_labels[live]
    if normalize:
        features, keys = F.normalize(features, dim=1), F.normalize(keys, dim=1)
    similarity = features @ keys.T / temperature
    positive = labels[:, None] == key_labels
    counted = (labels >= 0) & positive.any(1)
    if denominator == "all":
        terms = -similarity.log_softmax(1)
    else:
        counted &= ~positive.all(1)
        rest = similarity.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
        terms = F.softplus(rest.masked_fill(~counted[:, None], 0) - similarity)
    losses = (terms * positive).sum(1) / positive.sum(1).clamp_min(1)
    own = torch.ones_like(losses, dtype=torch.float32) if weight is None else weight.flatten()
    own = own.where(counted, 0)
    total = losses.where(counted, 0).float() * own
    if reduction == "mean":
        total = total.sum() / own.sum().clamp_min(1e-30)
    return (total if reduction == "none" else total.sum()), (counted.sum(), ((labels >= 0) & ~counted).sum())


def distance(own, exact):
    """Root mean square of the difference: a maximum over few numbers is too much a matter of luck to compare."""
    return (own.double().cpu().flatten() - exact.double().flatten()).square().mean().sqrt().item()


def rounding(exact, dtype, reduction):
    """One rounding of the result; where all is zero (a single key), of a similarity 1 / 0.1, for each voxel added."""
    if exact.any():
        return torch.finfo(dtype).eps * distance(exact, torch.zeros_like(exact))
    return 10 * torch.finfo(torch.float32).eps * (1 if reduction == "mean" else 300)


SHAPES = [((63,), 8), ((10, 10), 16), ((63,), 48), ((10, 10), 64), ((10, 10, 10), 16), ((3, 3, 7), 48), ((5, 5, 4), 8)]
WAYS = cycle(  # weighted, reduction, layout
    [
        (False, "mean", "contiguous"),
        (True, "mean", "channels_last"),
        (True, "none", "contiguous"),
        (False, "sum", "channels_last"),
        (False, "none", "channels_last"),
    ]
)
CASES = [
    pytest.param(*shape, keys, *way, id="-".join(map(str, (*shape, keys, *way))).replace(" ", ""))
    for (shape, keys), way in zip(product(SHAPES, (1, 2, 257)), WAYS)
]


@on_targets
@DENOMINATORS
@pytest.mark.parametrize(("size", "channels", "keys", "weighted", "reduction", "layout"), CASES)
def test_no_further_from_float64_than_plain_torch(
    device, dtype, denominator, size, channels, keys, weighted, reduction, layout
):
    tensors = problem(size, channels, keys, missing=int(keys == 257), layout=layout, dtype=dtype, device=device)
    tensors = tensors if weighted else (*tensors[:4], None)
    arguments = {"denominator": denominator, "reduction": reduction, "temperature": 0.1, "normalize": True}
    ours = evaluate(*tensors, impl="triton", **arguments)
    exact = exactly(tensors, **arguments)
    other = evaluate(*tensors, function=plain, **arguments)
    assert [int(n) for n in ours[1:3]] == [int(n) for n in exact[1:3]]
    for own, torch_own, true in zip(ours, other, exact):
        if true is not None and true.is_floating_point():
            assert own.isfinite().all()
            # on some CPUs torch's own error is a single rounding here, by the order in which their libraries add
            assert distance(own, true) <= 1.5 * distance(torch_own, true) + 2 * rounding(true, dtype, reduction)
    assert not ours[3].movedim(1, -1)[tensors[1] < 0].any()


@on_targets
@DENOMINATORS
@pytest.mark.parametrize(
    "setting", [{"temperature": 0.01}, {"normalize": False, "temperature": 1.0}], ids=["cold", "product"]
)
def test_other_settings(device, dtype, denominator, setting):
    tensors = problem((5, 5, 3), 16, 40, dtype=dtype, device=device)
    arguments = {"normalize": True, "denominator": denominator, "reduction": "mean", **setting}
    ours = evaluate(*tensors, impl="triton", **arguments)
    exact = exactly(tensors, **arguments)
    other = evaluate(*tensors, function=plain, **arguments)
    for own, torch_own, true in zip(ours, other, exact):
        if true.is_floating_point():
            # cold similarities are large, and the log-sum-exp that is saved for the keys has their rounding
            assert distance(own, true) <= 3 * distance(torch_own, true) + rounding(true, dtype, "mean")


@on_targets
@DENOMINATORS
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-4, 1e4])
def test_extreme_features_stay_finite(device, dtype, denominator, size):
    features, *rest = problem((20,), 16, 6, dtype=torch.float32, device=device)
    tensors = ((size * features).to(dtype), rest[0], rest[1].to(dtype), *rest[2:])
    exact = exactly(tensors, denominator=denominator)
    ours = evaluate(*tensors, impl="triton", denominator=denominator)
    if not tensors[0].any():
        assert not ours[3].any()  # no direction, no gradient
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for own, true in zip(ours, exact):
        assert own.isfinite().all() or not true.to(own.dtype).isfinite().all()
        if true.is_floating_point() and true.to(own.dtype).isfinite().all() and true.abs().max() < 1e6:
            assert distance(own, true) <= tolerance * max(true.abs().max().item(), 1e-5)


@on_devices
@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", ["no keys", "unwritten bank", "nothing labelled", "other classes", "no volumes"])
def test_nothing_to_do_is_an_attached_zero(device, denominator, reduction, case):
    features, labels, bank, key_labels, weight = problem((4, 4), 8, 5, dtype=torch.float32, device=device)
    bank, key_labels = (bank[:0], key_labels[:0]) if case == "no keys" else (bank, key_labels)
    key_labels = key_labels.fill_(-1) if case == "unwritten bank" else key_labels
    labels = labels.fill_({"nothing labelled": -1, "other classes": 9}.get(case, 0))
    if case == "no volumes":
        features, labels, weight = features[:0], labels[:0], weight[:0]
    ours = evaluate(
        features, labels, bank, key_labels, weight, impl="triton", denominator=denominator, reduction=reduction
    )
    assert not any(part.any() for part in (ours[0], ours[1], *ours[3:]))
    assert ours[2] == (0 if case in ("nothing labelled", "no volumes") else labels.numel())


@on_devices
@DENOMINATORS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_copy_of_the_features_and_a_gradient_in_their_layout(device, denominator, layout, monkeypatch):
    from ssmis.kernels import triton_voxel_contrast as device_code

    seen = []
    forward = device_code.forward
    monkeypatch.setattr(
        device_code, "forward", lambda *args, **kw: seen.append(args[0].data_ptr()) or forward(*args, **kw)
    )
    features, labels, bank, key_labels, _ = problem((3, 4, 5), 16, 6, layout=layout, dtype=torch.float32, device=device)
    voxel_contrast(
        features.requires_grad_(), labels, bank, key_labels, denominator=denominator, impl="triton"
    ).backward()
    assert seen == [features.data_ptr()]
    assert features.grad.stride() == features.stride()


@on_devices
@DENOMINATORS
def test_what_does_not_count_has_no_say(device, denominator):
    tensors = problem((6, 6), 16, 9, missing=1, dtype=torch.float32, device=device)
    features, labels, bank, key_labels, weight = tensors
    expected = evaluate(*tensors, impl="triton", denominator=denominator)
    away = (labels < 0) | (labels == 2)
    spoilt = features.masked_fill(away[:, None], torch.nan)
    keys = bank.masked_fill((key_labels < 0)[:, None], torch.nan)
    ours = evaluate(
        spoilt, labels, keys, key_labels, weight.masked_fill(away, torch.nan), impl="triton", denominator=denominator
    )
    for own, other in zip(ours, expected):
        torch.testing.assert_close(own, other, atol=0, rtol=0)
    assert not ours[3].movedim(1, -1)[away].any()


@on_devices
@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_gradients_do_not_depend_on_what_else_is_wanted(device, denominator, reduction, needs):
    tensors = problem((6, 6), 16, 9, dtype=torch.float32, device=device)
    arguments = {"impl": "triton", "denominator": denominator, "reduction": reduction}
    every = evaluate(*tensors, **arguments)
    ours = evaluate(*tensors, needs=needs, **arguments)
    torch.testing.assert_close(ours[0], every[0])
    for own, other, need in zip(ours[3:], every[3:], needs):
        assert (own is None) == (not need)
        if need:
            assert torch.equal(own, other)  # bit for bit: sums have a fixed order


@on_devices
@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("keys", [5, 9])  # of five all have one class, so that no voxel has a negative
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at it
def test_the_operator_keeps_its_promises_to_torch(device, denominator, reduction, keys):
    features, labels, bank, key_labels, weight = problem((16,), 8, keys, dtype=torch.float32, device=device)
    arguments = (
        features.requires_grad_(), labels, bank.requires_grad_(), key_labels, weight.requires_grad_(),
        0.1, -1, True, denominator, reduction, [True, True, True],
    )  # fmt: skip
    result = torch.library.opcheck(torch.ops.ssmis.voxel_contrast_device.default, arguments)
    assert len(result) == 4
    assert set(result.values()) == {"SUCCESS"}


@on_devices
@DENOMINATORS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.filterwarnings("ignore")
def test_it_compiles_into_one_graph_also_under_autocast(device, denominator, reduction):
    features, labels, bank, key_labels, weight = problem((4, 3, 2), 8, 7, dtype=torch.float32, device=device)

    def loss(features, keys):
        scaled = voxel_contrast(
            2 * features, labels, keys, key_labels, weight=weight, denominator=denominator, reduction=reduction,
            impl="triton",
        )  # fmt: skip
        return scaled.square().sum()

    results = []
    for function, autocast in (
        (loss, False),
        (torch.compile(loss, fullgraph=True, backend="aot_eager"), False),
        (loss, True),
    ):
        leaves = [t.clone().requires_grad_() for t in (features, bank)]
        with torch.autocast(device, torch.float16, enabled=autocast):
            value = function(*leaves)
        value.backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for other in results[1:]:
        for own, expected in zip(other, results[0]):
            torch.testing.assert_close(own, expected)


@on_devices
def test_what_it_cannot_do_it_says(device):
    features = torch.zeros(1, 300, 4, dtype=torch.float64, device=device)
    found = reasons(features, torch.zeros(70000, 300, device=device))
    assert len(found) == 3
    assert "features is torch.float64" in found[0]
    assert "300 channels" in found[1]
    assert "70000 rows" in found[2]
    if device == "cpu":
        assert "no bfloat16" in reasons(torch.zeros(1, 8, 4, dtype=torch.bfloat16), torch.zeros(3, 8))[0]


@pytest.mark.gpu
@DENOMINATORS
@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cuda", torch.bfloat16)])
def test_memory_never_holds_voxels_times_keys(device, dtype, denominator):
    tensors = problem((64, 64, 16), 16, 4096, dtype=dtype, device=device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate(*tensors, impl="auto", denominator=denominator)
    assert torch.cuda.max_memory_allocated() - before < tensors[1].numel() * 4096  # a byte for each pair
