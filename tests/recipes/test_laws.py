# SPDX-License-Identifier: Apache-2.0
"""The laws of the dual-network method, each as a property with gradients.

Most are tested on the whole recipe with nets whose outputs are their parameters, so that the gradient of every voxel
can be seen. Random draws have no say there: all uncertain voxels are anchors and the banks are filled beforehand.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes.small import small_batch, small_nets
from strategies import make_labels, make_logits, make_mask, pair_of_logits, sizes
from torch import Tensor, nn

from ssmis.data import Batch, BatchMaker, Entry, TwoStreamSampler
from ssmis.kernels import voxel_contrast
from ssmis.losses import cross_entropy, kl_rectified_ce
from ssmis.memory import sample_per_class
from ssmis.nets import NetOutput
from ssmis.recipes import DualUncertainty
from ssmis.registry import BANKS
from ssmis.uncertainty import entropy, entropy_of_probs, kl_divergence

NETS = ("resnet", "vnet")
SLACK = 2e-7  # of float32: D reaches down to -2e-7, weights up to 1.0000002
SEEDS = st.integers(0, 2**31)
UNLABELLED = ("rectified", "filtered", "cosine", "contrast")
SETTINGS = st.fixed_dictionaries(
    {
        "reduction": st.sampled_from(["mean", "pooled"]),
        "filter_scope": st.sampled_from(["volume", "batch", "class"]),
        "rectified_on": st.sampled_from(["unlabelled", "all"]),
    }
)


class Maps(nn.Module):
    """A net whose logits and features are its parameters, whatever the images are."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__()
        self.logits, self.features = nn.Parameter(logits.clone()), nn.Parameter(features.clone())
        self.classes, self.channels = logits.shape[1], features.shape[1]

    def forward(self, images: Tensor) -> NetOutput:
        return NetOutput(self.logits, self.features)


@dataclass(frozen=True)
class Problem:
    """Outputs of both nets `(L + U, C, *S)`, labels `(L, *S)`, valid `(U, *S)` or None, and what the banks hold."""

    logits: dict[str, Tensor]
    features: dict[str, Tensor]
    labels: Tensor
    valid: Tensor | None
    keys: dict[str, Tensor]
    key_labels: Tensor

    @property
    def size(self) -> torch.Size:
        return self.labels.shape[1:]

    @property
    def inside(self) -> Tensor:
        """Bool `(U, *S)`: the unlabelled voxels that are not padding."""
        count = len(self.logits[NETS[0]]) - len(self.labels)
        return torch.ones(count, *self.size, dtype=torch.bool) if self.valid is None else self.valid

    def batch(self) -> Batch:
        count = len(self.labels)
        images = torch.zeros(len(self.logits[NETS[0]]), 1, *self.size)
        return Batch(images[:count], self.labels, images[count:], valid=self.valid)


def make_problem(seed, classes, size, *, labelled=2, unlabelled=2, padded=True, channels=4) -> Problem:
    """Float64, so that no two entropies are equal: which of equal ones is kept depends on the order of the voxels."""
    both = labelled + unlabelled
    return Problem(
        logits={name: make_logits(seed + i, both, classes, size).double() for i, name in enumerate(NETS)},
        features={name: make_logits(seed + 2 + i, both, channels, size).double() for i, name in enumerate(NETS)},
        labels=make_labels(seed, labelled, classes, size, low=-1),
        valid=make_mask(seed, unlabelled, size) if padded else None,
        keys={name: make_logits(seed + 4 + i, 3 * classes, channels, ()) for i, name in enumerate(NETS)},
        key_labels=torch.arange(3 * classes) % classes,
    )


@st.composite
def problems(draw, **arguments):
    size = draw(sizes(low=2, high=3))
    return make_problem(draw(SEEDS), draw(st.integers(2, 5)), size, padded=draw(st.booleans()), **arguments)


@dataclass(frozen=True)
class Outcome:
    """A term: its value, and the gradients of logits and features of each net, zero where there is no path."""

    value: Tensor
    logits: dict[str, Tensor]
    features: dict[str, Tensor]
    attached: set[str]

    def gradients(self):
        return [*self.logits.values(), *self.features.values()]


def evaluate(problem: Problem, **overrides) -> dict[str, Outcome]:
    """Every term of the recipe at the end of training, `cosine` included."""
    arguments = {"cosine_weight": 1.0, "anchors": None, "slots": 32, "candidates": 4, **overrides}
    nets = {name: Maps(problem.logits[name], problem.features[name]) for name in NETS}
    recipe = DualUncertainty(nets, **arguments)
    for name, bank in recipe.banks.items():
        bank.write(problem.keys[name], problem.key_labels)
    torch.manual_seed(0)
    terms = recipe(problem.batch(), 1.0)
    leaves = [leaf for net in nets.values() for leaf in (net.logits, net.features)]
    outcomes = {}
    for name, term in terms.items():
        assert term.value.requires_grad, name
        found = torch.autograd.grad(term.value, leaves, retain_graph=True, allow_unused=True)
        full = [torch.zeros_like(leaf) if own is None else own for own, leaf in zip(found, leaves)]
        attached = {NETS[i // 2] for i, own in enumerate(found) if own is not None}
        outcomes[name] = Outcome(term.value.detach(), dict(zip(NETS, full[::2])), dict(zip(NETS, full[1::2])), attached)
    assert terms.total().isfinite()
    return outcomes


@dataclass(frozen=True)
class Order:
    """A consistent permutation of a problem: indices of volumes, voxels and classes; None leaves them in place."""

    labelled: Tensor | None = None
    unlabelled: Tensor | None = None
    voxels: Tensor | None = None
    classes: Tensor | None = None

    def of_voxels(self, tensor: Tensor, dims: int) -> Tensor:
        if self.voxels is None:
            return tensor
        return tensor.flatten(-dims)[..., self.voxels].view_as(tensor)

    def of_maps(self, maps: Tensor, problem: Problem, *, classes: bool) -> Tensor:
        count = len(problem.labels)
        if self.labelled is not None:
            maps = torch.cat([maps[:count][self.labelled], maps[count:][self.unlabelled]])
        if classes and self.classes is not None:
            maps = maps[:, self.classes]
        return self.of_voxels(maps, len(problem.size))

    def of_classes(self, labels: Tensor) -> Tensor:
        if self.classes is None:
            return labels
        return torch.where(labels < 0, -1, self.classes.argsort()[labels.clamp_min(0)])

    def of_problem(self, problem: Problem) -> Problem:
        labels, valid = problem.labels, problem.valid
        if self.labelled is not None:
            labels = labels[self.labelled]
            valid = None if valid is None else valid[self.unlabelled]
        dims = len(problem.size)
        return replace(
            problem,
            logits={name: self.of_maps(maps, problem, classes=True) for name, maps in problem.logits.items()},
            features={name: self.of_maps(maps, problem, classes=False) for name, maps in problem.features.items()},
            labels=self.of_voxels(self.of_classes(labels), dims),
            valid=None if valid is None else self.of_voxels(valid, dims),
            key_labels=self.of_classes(problem.key_labels),
        )


def shuffle(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def assert_only_moved(problem: Problem, order: Order, **arguments) -> None:
    """No term changes its value, and every gradient is permuted as the problem is."""
    before, after = evaluate(problem, **arguments), evaluate(order.of_problem(problem), **arguments)
    assert set(before) == set(after)
    for name, term in before.items():
        torch.testing.assert_close(after[name].value, term.value, rtol=1e-6, atol=1e-7, msg=name)
        for net in NETS:
            for own, other, classes in (
                (term.logits[net], after[name].logits[net], True),
                (term.features[net], after[name].features[net], False),
            ):
                moved = order.of_maps(own, problem, classes=classes)
                torch.testing.assert_close(other, moved, rtol=1e-9, atol=1e-12, msg=name)


# Each term's gradient reaches exactly the nets it should and is non-zero; detached sides get none.


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**31),
    dims=st.sampled_from([2, 3]),
    bank=st.sampled_from(["fifo", "ema", "batch"]),
    preset=st.sampled_from(["paper", "public_code"]),
)
def test_every_term_trains_exactly_its_net(seed, dims, bank, preset):
    recipe = DualUncertainty(small_nets(dims=dims, seed=seed), bank=bank, preset=preset)
    with torch.no_grad():  # one net is sure of the foreground, one is not: the disagreement has voxels
        for net, sign in zip(recipe.students.values(), (2.0, -2.0)):
            net.head.conv.bias.copy_(sign * torch.tensor([-1.0, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    for name, memory in recipe.banks.items():
        memory.write(torch.randn(8, recipe.students[name].channels, generator=generator), torch.arange(8) % 2)
    terms = recipe(small_batch(seed % 1000, dims=dims), 0.9)
    expected = {"paper": {"rectified", "filtered", "contrast"}, "public_code": {"rectified", "cosine"}}[preset]
    assert {name.split("/")[0] for name in terms} == {"supervised", "disagreement"} | expected
    for name, term in terms.items():
        own = name.split("/")[1]
        assert term.reaches == (own,)
        for net, student in recipe.students.items():
            found = torch.autograd.grad(term.value, list(student.parameters()), retain_graph=True, allow_unused=True)
            live = [gradient for gradient in found if gradient is not None]
            if net == own:
                assert max(gradient.abs().max() for gradient in live) > 0, f"{name} is dead"
                assert all(gradient.isfinite().all() for gradient in live), name
            else:
                assert not live, f"{name} has a path into {net}"


@given(problem=problems(), arguments=SETTINGS)
def test_terms_of_one_net_have_no_path_into_the_outputs_of_the_other(problem, arguments):
    for name, term in evaluate(problem, **arguments).items():
        kind, own = name.split("/")
        assert term.attached == {own}, name
        assert term.features[own].any() == (kind == "contrast" and term.value > 0), name
        assert not (kind == "contrast" and term.logits[own].any()), name


@settings(max_examples=5)
@given(seed=SEEDS, change=st.sampled_from(["shuffle", "invert", "delete"]))
def test_unlabelled_ground_truth_cannot_reach_the_weights(seed, change):
    random = np.random.default_rng(seed)
    size, count = (9, 8), 8
    labels = random.integers(0, 2, (count, *size)).astype(np.uint8)
    images = (labels[:, None] + random.normal(size=(count, 1, *size))).astype(np.float32)
    other = {"shuffle": lambda y: random.permutation(y.ravel()).reshape(y.shape), "invert": lambda y: 1 - y}
    other["delete"] = lambda y: None

    def trained(hidden):
        names = [f"case{i}" for i in range(count)]
        cache = {
            name: Entry(image, label if i < 3 else hidden(label))
            for i, (name, image, label) in enumerate(zip(names, images, labels))
        }
        batches = BatchMaker(cache, TwoStreamSampler(names[:3], names[3:], seed=seed), patch=(8, 8), seed=seed)
        recipe = DualUncertainty(small_nets(seed=seed), candidates=4, anchors=16)
        start = [parameter.detach().clone() for parameter in recipe.parameters()]
        optimizer = torch.optim.SGD(recipe.parameters(), lr=0.01, momentum=0.9)
        torch.manual_seed(seed)
        for step in range(3):
            recipe.begin_step()
            optimizer.zero_grad()
            recipe(batches(step), 0.9).total().backward()
            assert all(parameter.grad.isfinite().all() for parameter in recipe.parameters())
            optimizer.step()
            recipe.after_step(0.9)
        assert all(not torch.equal(a, b) for a, b in zip(start, recipe.parameters()) if b.ndim > 1)
        return recipe.state_dict()

    before, after = trained(lambda label: label), trained(other[change])
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# Perfect agreement: D = 0, weight 1; D >= 0; weight in [0, 1]; D does not rise on the way from one net to the other.


@given(problem=problems(), shift=st.floats(-50, 50), arguments=SETTINGS)
def test_perfect_agreement(problem, shift, arguments):
    own = problem.logits[NETS[0]]
    divergence = kl_divergence(own.float(), own.float() + shift)
    assert divergence.abs().max() < 1e-5 if shift else divergence.abs().max() <= SLACK
    assert (kl_divergence(own, own + shift).neg().exp() - 1).abs().max() < 1e-12
    # softmax does not see the shift, so both nets agree: what is left is the cross-entropy with the own labels
    agreed = replace(problem, logits={NETS[0]: own, NETS[1]: own + shift})
    arguments = {**arguments, "rectified_on": "unlabelled", "detach_weight": False}
    outcomes = evaluate(agreed, **arguments)
    count = len(problem.labels)
    for net in NETS:
        student = agreed.logits[net].clone().requires_grad_()
        plain = cross_entropy(
            student[count:], own[count:].argmax(1), mask=problem.valid, reduction=arguments["reduction"]
        )
        (expected,) = torch.autograd.grad(plain, student)
        rectified, gap = outcomes[f"rectified/{net}"], outcomes[f"disagreement/{net}"]
        torch.testing.assert_close(rectified.value, plain.detach().float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rectified.logits[net], expected, rtol=1e-9, atol=1e-12)
        assert gap.value == 0
        assert not gap.logits[net].any()
        assert outcomes[f"cosine/{net}"].value.abs() < 1e-6
        assert outcomes[f"cosine/{net}"].logits[net].abs().max() < 1e-12


@given(pair=pair_of_logits(), scale=st.sampled_from([0.01, 1.0, 30.0, 3e3]), dtype=st.sampled_from(["float", "double"]))
def test_divergence_is_not_negative(pair, scale, dtype):
    teacher, student = (scale * getattr(logits, dtype)() for logits in pair)
    student = student.requires_grad_()
    divergence = kl_divergence(teacher, student)
    assert divergence.isfinite().all()
    assert divergence.min() >= -SLACK
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    expected = student.detach().softmax(1) - teacher.softmax(1)  # zero exactly where D is least
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@given(
    pair=pair_of_logits(),
    scale=st.sampled_from([0.0, 1.0, 40.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_weight_is_between_zero_and_one(pair, scale, dtype):
    # signs times 1e4: certain nets, which agree (weight 1) or not (D of 2e4, and exp(-D) is 0 from D = 104 on)
    teacher, student = ((scale * logits.sign() if scale == 1e4 else scale * logits).to(dtype) for logits in pair)
    student = student.requires_grad_()
    divergence = kl_divergence(teacher, student)
    weight = divergence.neg().exp()
    assert (weight >= 0).all()
    assert (weight <= 1 + 2 * SLACK).all()
    loss = kl_rectified_ce(student, teacher, detach_weight=False, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
    (by_divergence,) = torch.autograd.grad(divergence.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    lost = divergence > 104
    assert not weight[lost].any()
    assert torch.equal(loss[lost], divergence[lost])  # the damped part is gone, its gradient too
    assert torch.equal(gradient.movedim(1, -1)[lost], by_divergence.movedim(1, -1)[lost])


@given(certainty=st.floats(53, 1e4))
def test_weight_underflows_to_zero(certainty):
    teacher = torch.tensor([[[certainty], [-certainty]]])
    student = teacher.neg().requires_grad_()
    loss = kl_rectified_ce(student, teacher)
    loss.backward()
    assert loss == kl_divergence(teacher, student)
    assert abs(loss.item() - 2 * certainty) < 1e-6 * certainty
    assert student.grad.flatten().tolist() == [-1, 1]  # towards the teacher, through D alone


@given(pair=pair_of_logits(), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_divergence_does_not_rise_on_the_way_to_the_teacher(pair, scale):
    start, teacher = (scale * logits.double() for logits in pair)
    path, slopes = [], []
    for way in torch.linspace(0, 1, 9, dtype=torch.float64):
        way = way.expand(start[:, 0].shape).clone().requires_grad_()  # one for each voxel
        divergence = kl_divergence(teacher, start + way.unsqueeze(1) * (teacher - start))
        path.append(divergence.detach())
        slopes.extend(torch.autograd.grad(divergence.sum(), way))
    values, slopes = torch.stack(path), torch.stack(slopes)
    assert (values.diff(dim=0) <= 1e-12).all()
    assert (slopes <= 1e-9).all()
    assert (slopes.diff(dim=0) >= -1e-9).all()  # convex
    assert values[-1].abs().max() < 1e-12
    assert slopes[-1].abs().max() < 1e-9
    float32 = torch.stack([kl_divergence(teacher.float(), start.lerp(teacher, way).float()) for way in (0.0, 0.5, 1.0)])
    assert (float32.diff(dim=0) <= 1e-5 * (1 + float32[:1])).all()


# Entropy lies in [0, 1] after division by log K.


@given(
    seed=SEEDS,
    classes=st.integers(2, 7),
    size=sizes(),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_entropy_is_between_zero_and_one(seed, classes, size, scale, dtype):
    logits = make_logits(seed, 2, classes, size, scale=1.0)
    logits = (scale * (logits.sign() if scale == 1e4 else logits)).to(dtype).requires_grad_()
    values = entropy(logits)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert values.dtype == torch.float32
    assert ((values >= 0) & (values <= 1)).all()
    assert gradient.isfinite().all()
    assert gradient.sum(1).abs().max() < 0.02 * classes  # a common shift of the logits changes nothing
    if scale == 0.0:
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-6)
    if scale == 1e4:  # equal shares of the m classes at +1e4, or of all where none is
        count = (logits > 0).sum(1)
        expected = count.where(count > 0, classes).float().log() / math.log(classes)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    probs = logits.detach().float().softmax(1).requires_grad_()
    of_probs = entropy_of_probs(probs)
    torch.testing.assert_close(of_probs, values, rtol=0, atol=2e-6)
    assert torch.autograd.grad(of_probs.sum(), probs)[0].isfinite().all()


# The mask keeps exactly the stated number of voxels whatever ties there are; q = 1 is plain CE on pseudo-labels.


def stated_count(labels: Tensor, valid: Tensor, fraction: float, scope: str) -> list[int]:
    """Number of kept voxels of each volume, or of all of them for the scope "batch"."""

    def share(count: int) -> int:
        return max(1, math.floor(fraction * count + 0.5)) if count else 0

    if scope == "batch":
        return [share(int(valid.sum()))]
    if scope == "volume":
        return [share(int(row.sum())) for row in valid]
    return [sum(share(int((inside & (own == k)).sum())) for k in own.unique()) for own, inside in zip(labels, valid)]


@given(
    problem=problems(),
    fraction=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 1.0])),
    scope=st.sampled_from(["volume", "batch", "class"]),
    ties=st.sampled_from(["none", "many", "saturated", "equal"]),
)
def test_exactly_the_stated_number_of_voxels_supervises(problem, fraction, scope, ties):
    change = {
        "none": lambda z: z,
        "many": lambda z: (z / 3).round(),
        "saturated": lambda z: 1e4 * z.sign(),
        "equal": torch.zeros_like,
    }[ties]
    teacher, student = NETS
    problem = replace(problem, logits={**problem.logits, teacher: change(problem.logits[teacher])})
    term = evaluate(problem, keep_fraction=fraction, filter_scope=scope)[f"filtered/{student}"]
    supervised = term.logits[student].any(1)  # softmax minus one-hot is nowhere zero
    count = len(problem.labels)
    assert not supervised[:count].any()
    kept = supervised[count:]
    assert not kept[~problem.inside].any()
    expected = stated_count(problem.logits[teacher][count:].argmax(1), problem.inside, fraction, scope)
    assert ([int(kept.sum())] if scope == "batch" else kept.flatten(1).sum(1).tolist()) == expected
    assert not term.logits[teacher].any()


@given(problem=problems(), arguments=SETTINGS)
def test_keeping_everything_is_plain_cross_entropy_with_pseudo_labels(problem, arguments):
    outcomes = evaluate(problem, keep_fraction=1.0, **arguments)
    count = len(problem.labels)
    for net, peer in (NETS, NETS[::-1]):
        student = problem.logits[net].clone().requires_grad_()
        plain = cross_entropy(
            student[count:],
            problem.logits[peer][count:].argmax(1),
            mask=problem.valid,
            reduction=arguments["reduction"],
        )
        (expected,) = torch.autograd.grad(plain, student)
        term = outcomes[f"filtered/{net}"]
        torch.testing.assert_close(term.value, plain.detach().float())
        torch.testing.assert_close(term.logits[net], expected, rtol=1e-9, atol=1e-12)
        contrast = outcomes[f"contrast/{net}"]  # nobody is unsure
        assert contrast.value == 0
        assert not contrast.features[net].any()


# Ignored voxels get zero gradient; permuting voxels, flipping axes, permuting volumes and foreground classes changes
# nothing. The exception are ties: of voxels with equal entropy the first ones are kept, whatever "first" has become.


@given(problem=problems(), arguments=SETTINGS, bank=st.sampled_from(["fifo", "ema", "batch"]), seed=SEEDS)
def test_ignored_voxels_get_no_gradient_and_have_no_say(problem, arguments, bank, seed):
    out = torch.cat([problem.labels < 0, ~problem.inside])
    before = evaluate(problem, bank=bank, **arguments)
    for name, term in before.items():
        for gradient in term.gradients():
            assert gradient.isfinite().all(), name
            assert not gradient.movedim(1, -1)[out].any(), name

    def scribbled(maps):
        return maps.where(~out[:, None], 9 * make_logits(seed, *maps.shape[:2], tuple(maps.shape[2:])).double())

    after = evaluate(
        replace(
            problem,
            logits={name: scribbled(maps) for name, maps in problem.logits.items()},
            features={name: scribbled(maps) for name, maps in problem.features.items()},
        ),
        bank=bank,
        **arguments,
    )
    for name, term in before.items():
        torch.testing.assert_close(after[name].value, term.value, rtol=1e-6, atol=1e-7, msg=name)
        for own, other in zip(term.gradients(), after[name].gradients()):
            torch.testing.assert_close(other, own, rtol=1e-9, atol=1e-12, msg=name)


@given(problem=problems(), arguments=SETTINGS, seed=SEEDS)
def test_voxels_may_be_permuted(problem, arguments, seed):
    assert_only_moved(problem, Order(voxels=shuffle(seed, problem.size.numel())), **arguments)


@given(problem=problems(), arguments=SETTINGS, axes=st.sets(st.integers(0, 2), min_size=1))
def test_axes_may_be_flipped(problem, arguments, axes):
    voxels = torch.arange(problem.size.numel()).view(problem.size)
    axes = [axis for axis in axes if axis < len(problem.size)] or [0]
    assert_only_moved(problem, Order(voxels=voxels.flip(axes).flatten()), **arguments)


@given(problem=problems(labelled=3, unlabelled=3), arguments=SETTINGS, seed=SEEDS)
def test_volumes_may_be_permuted(problem, arguments, seed):
    assert_only_moved(problem, Order(labelled=shuffle(seed, 3), unlabelled=shuffle(seed + 1, 3)), **arguments)


@given(problem=problems(), arguments=SETTINGS, seed=SEEDS)
def test_foreground_classes_may_be_permuted(problem, arguments, seed):
    classes = problem.logits[NETS[0]].shape[1]
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + shuffle(seed, classes - 1)])
    assert_only_moved(problem, Order(classes=order), **arguments)


# Optimising the contrast term raises the distance between classes and lowers that within a class.


def distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Least distance between two class means, and mean distance of directions `(V, E)` from the mean of their class."""
    features = features / features.norm(dim=1, keepdim=True)
    means = torch.stack([features[labels == k].mean(0) for k in labels.unique()])
    within = torch.stack([(features[labels == k] - m).norm(dim=1).mean() for k, m in zip(labels.unique(), means)])
    return torch.pdist(means).min(), within.mean()


@settings(max_examples=12)
@given(
    seed=SEEDS,
    classes=st.integers(2, 4),
    bank=st.sampled_from(["fifo", "ema", "batch"]),
    denominator=st.sampled_from(["negatives", "all"]),
)
def test_contrast_parts_the_classes_and_gathers_each(seed, classes, bank, denominator):
    features = make_logits(seed, 2, 6, (5, 5), scale=1.0).requires_grad_()  # noise: no class has a place of its own
    labels = make_labels(seed, 2, classes, (5, 5))
    labels[0, 0, :classes] = torch.arange(classes)
    memory = BANKS.create(bank, classes=classes, channels=6, **({"slots": 32} if bank == "fifo" else {}))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([features], lr=0.1)

    def measured():
        return distances(features.detach().movedim(1, -1).flatten(0, -2), labels.flatten())

    between, within = measured()
    losses = []
    for _ in range(20):
        vectors, vector_labels = sample_per_class(features, labels, classes=classes, per_class=16, generator=generator)
        memory.write(vectors, vector_labels)
        loss = voxel_contrast(features, labels, *memory(vectors, vector_labels), denominator=denominator)
        optimizer.zero_grad()
        loss.backward()
        assert features.grad.isfinite().all()
        assert features.grad.any()
        optimizer.step()
        losses.append(loss.detach())
    after_between, after_within = measured()
    assert after_between > between + 0.1
    assert after_within < within - 0.1
    assert losses[-1] < losses[0]


# Degenerate inputs: every term finite and attached, with finite gradients.

EMPTY = {  # what is empty, and the terms that are zero then
    "no foreground": (),
    "nothing labelled": ("supervised", "disagreement"),
    "empty mask": UNLABELLED,
    "empty mask of one volume": (),
    "one voxel": (),
    "one class missing": (),
    "one class predicted": ("contrast",),
    "empty bank": ("contrast",),
}


def emptied(problem: Problem, case: str) -> Problem:
    last = problem.logits[NETS[0]].shape[1] - 1
    first = {name: maps[:, :1] for name, maps in problem.logits.items()}
    if case == "no foreground":
        return replace(problem, labels=problem.labels * 0)
    if case == "nothing labelled":
        return replace(problem, labels=torch.full_like(problem.labels, -1))
    if case == "empty mask":
        return replace(problem, valid=torch.zeros_like(problem.labels).bool())
    if case == "empty mask of one volume":
        return replace(
            problem,
            valid=torch.ones_like(problem.labels).bool() & (torch.arange(2) > 0).view(2, *[1] * len(problem.size)),
        )
    if case == "one class missing":
        logits = {name: torch.cat([maps[:, :last], first[name] - 9], 1) for name, maps in problem.logits.items()}
        kept = problem.key_labels.where(problem.key_labels != last, -1)
        return replace(problem, logits=logits, labels=problem.labels.where(problem.labels != last, 0), key_labels=kept)
    if case == "one class predicted":
        logits = {
            name: torch.cat([maps.amax(1, keepdim=True) + 1, maps[:, 1:]], 1) for name, maps in problem.logits.items()
        }
        return replace(problem, logits=logits, key_labels=problem.key_labels.where(problem.key_labels == 0, -1))
    if case == "empty bank":
        return replace(problem, key_labels=torch.full_like(problem.key_labels, -1))
    return problem


@settings(max_examples=60)
@given(
    seed=SEEDS,
    classes=st.integers(2, 4),
    dims=st.sampled_from([2, 3]),
    case=st.sampled_from(list(EMPTY)),
    scale=st.sampled_from([1.0, 1e4]),
    padded=st.booleans(),
    arguments=SETTINGS,
    bank=st.sampled_from(["fifo", "ema"]),
)
def test_degenerate_inputs(seed, classes, dims, case, scale, padded, arguments, bank):
    size = ((1,) if case == "one voxel" else (3,)) * dims
    problem = emptied(make_problem(seed, classes, size, padded=padded), case)
    problem = replace(problem, logits={name: scale * maps for name, maps in problem.logits.items()})
    if case in ("nothing labelled", "empty mask"):
        arguments = {**arguments, "rectified_on": "unlabelled"}
    for name, term in evaluate(problem, bank=bank, **arguments).items():
        kind, own = name.split("/")
        assert term.value.isfinite(), name
        assert term.attached == {own}, name
        assert all(gradient.isfinite().all() for gradient in term.gradients()), name
        if kind in EMPTY[case]:
            assert term.value == 0, name
            assert not any(gradient.any() for gradient in term.gradients()), name
