# SPDX-License-Identifier: Apache-2.0
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssmis.engine.infer import Predictor
from ssmis.engine.runtime import Precision
from ssmis.nets.output import NetOutput
from ssmis.recipes.base import Prediction, Recipe

SIZES = st.sampled_from([2, 3]).flatmap(lambda dims: st.lists(st.integers(1, 13), min_size=dims, max_size=dims))
BLENDING = st.sampled_from(["gaussian", "uniform"])


def image(seed, size, channels=1):
    return torch.rand(channels, *size, generator=torch.Generator().manual_seed(seed))


def voxelwise(windows):
    """Probabilities that depend on the voxel alone."""
    return torch.cat([windows[:, :1], 1 - windows[:, :1]], 1)


def positional(windows):
    """Probabilities that depend on the neighbourhood, the side and the place in the window: hard to get right."""
    place = torch.linspace(0, 1, windows[0, 0].numel()).view(windows.shape[2:])
    shifted = windows[:, :1].roll(1, dims=2) * 0.7 + 0.3 * place
    return torch.cat([shifted, 1 - shifted], 1)


@given(st.integers(0, 10_000), SIZES, st.integers(1, 5), st.integers(1, 4), BLENDING, st.booleans(), st.integers(1, 5))
def test_a_voxelwise_model_is_reproduced_whatever_the_windows(seed, size, patch, stride, blending, flip, batch_size):
    volume = image(seed, size)
    predictor = Predictor(
        voxelwise,
        patch=[patch] * len(size),
        stride=[min(stride, patch)] * len(size),
        blending=blending,
        flips=(0, 1) if flip else (),
        batch_size=batch_size,
    )
    found = predictor.predict(volume)
    assert found.probs.shape == (2, *size)
    assert found.uncertainty.shape == tuple(size)
    torch.testing.assert_close(found.probs, voxelwise(volume[None])[0], atol=1e-5, rtol=1e-5)


@given(SIZES, st.floats(0, 1), BLENDING, st.sampled_from([1.0, 0.5]))
def test_a_constant_model_gives_its_constant_and_its_entropy(size, share, blending, scale):
    probs = torch.tensor([share, 1 - share])
    predictor = Predictor(
        lambda windows: probs.view(1, 2, *[1] * len(size)).expand(len(windows), 2, *windows.shape[2:]),
        patch=[4] * len(size),
        stride=[3] * len(size),
        blending=blending,
        scale=scale,
    )
    found = predictor.predict(image(0, size))
    torch.testing.assert_close(found.probs, probs.view(2, *[1] * len(size)).expand(2, *size), atol=1e-5, rtol=1e-5)
    entropy = -sum(p * np.log(max(p, 1e-12)) for p in (share, 1 - share)) / np.log(2)
    assert found.uncertainty.sub(entropy).abs().max() < 1e-4


@given(st.integers(0, 10_000), SIZES, st.integers(1, 5), st.integers(1, 4))
def test_with_flips_averaged_flipping_the_image_flips_the_result(seed, size, patch, stride):
    volume = image(seed, size)
    predictor = Predictor(positional, patch=[patch] * len(size), stride=[min(stride, patch)] * len(size), flips=(0, 1))
    straight = predictor.predict(volume).probs
    for axes in ([1], [2], [1, 2]):
        flipped = predictor.predict(volume.flip(axes)).probs
        torch.testing.assert_close(flipped, straight.flip(axes), atol=1e-5, rtol=1e-5)


def test_flips_average_every_combination_of_the_axes():
    volume = image(0, (6, 5))
    found = Predictor(positional, patch=(6, 5), flips=(0, 1)).predict(volume).probs
    views = [positional(volume[None].flip(axes)).flip(axes)[0] for axes in ([], [2], [3], [2, 3])]
    torch.testing.assert_close(found, torch.stack(views).mean(0))


@pytest.mark.parametrize("blending", ["gaussian", "uniform"])
def test_brute_force_twin(blending):
    volume = image(1, (9, 7))
    found = Predictor(positional, patch=(4, 6), stride=(3, 2), blending=blending).predict(volume).probs
    total, weights = np.zeros((2, 9, 7)), np.zeros((9, 7))
    for i in (0, 3, 5):
        for j in (0, 1):
            probs = positional(volume[None, :, i : i + 4, j : j + 6])[0].numpy()
            for di in range(4):
                for dj in range(6):
                    bell = np.exp(-0.5 * (((di - 1.5) / 0.5) ** 2 + ((dj - 2.5) / 0.75) ** 2))
                    weight = 1.0 if blending == "uniform" else max(bell, 1e-3)
                    total[:, i + di, j + dj] += weight * probs[:, di, dj]
                    weights[i + di, j + dj] += weight
    np.testing.assert_allclose(found.numpy(), total / weights, atol=1e-6)


@pytest.mark.parametrize(("blending", "mode"), [("gaussian", "gaussian"), ("uniform", "constant")])
def test_monai_agrees(blending, mode):
    inferers = pytest.importorskip("monai.inferers")
    volume = image(2, (20, 24))
    theirs = inferers.sliding_window_inference(volume[None], (8, 8), 4, positional, overlap=0.5, mode=mode)
    ours = Predictor(positional, patch=(8, 8), overlap=0.5, blending=blending).predict(volume).probs
    torch.testing.assert_close(ours, torch.as_tensor(theirs)[0], atol=1e-5, rtol=1e-5)


def test_small_volumes_are_padded_with_zeros_on_both_sides():
    seen = []

    def model(windows):
        seen.append(windows.clone())
        return voxelwise(windows)

    volume = 1 + image(3, (3, 4))
    Predictor(lambda windows: model(windows).clamp(0, 1).softmax(1), patch=(6, 4)).predict(volume)
    (window,) = seen
    assert torch.equal(window[0, :, 1:4], volume)
    assert window[0, :, [0, 4, 5]].abs().max() == 0


def test_an_ensemble_is_the_mean_and_predictions_count_as_probabilities():
    volume = image(4, (7, 8, 5))
    patch = {"patch": (4, 4, 4), "stride": (2, 3, 4)}

    def as_prediction(windows):
        return Prediction.from_probs(voxelwise(windows))

    both = Predictor([positional, as_prediction], **patch).predict(volume).probs
    each = [Predictor(model, **patch).predict(volume).probs for model in (positional, voxelwise)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return NetOutput(self.drop(self.conv(images)))


def test_a_recipe_predicts_through_its_predict_without_gradient():
    torch.manual_seed(0)
    recipe = Recipe({"a": Net(), "b": Net()}).train()
    volume = image(5, (8, 8), channels=2)
    found = Predictor(recipe, patch=(8, 8)).predict(volume)
    torch.testing.assert_close(found.probs, recipe.predict(volume[None]).probs[0])
    assert not found.probs.requires_grad
    assert recipe.students["a"].training


def test_autocast_reaches_the_model_and_results_stay_float32():
    seen = []

    def model(windows):
        logits = nn.functional.conv2d(windows, torch.ones(2, 1, 1, 1))
        seen.append(logits.dtype)
        return logits.softmax(1)

    predictor = Predictor(model, patch=(4, 4), precision=Precision("bf16", "cpu"))
    assert predictor.predict(image(6, (6, 6))).probs.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


def test_scale_predicts_on_a_coarser_grid_and_returns_to_the_original():
    sizes = []

    def model(windows):
        sizes.append(tuple(windows.shape[2:]))
        return voxelwise(windows)

    volume = torch.linspace(0, 1, 16).view(1, 16, 1).expand(1, 16, 10)
    found = Predictor(model, patch=(8, 5), scale=0.5).predict(volume)
    assert sizes == [(8, 5)]
    assert found.probs.shape == (2, 16, 10)
    torch.testing.assert_close(found.probs[0, 1:-1], volume[0, 1:-1], atol=1e-5, rtol=1e-5)  # a ramp survives
    torch.testing.assert_close(found.probs.sum(0), torch.ones(16, 10))


def test_any_numpy_image_is_accepted():
    volume = image(7, (6, 5))
    array = volume.numpy().astype(">f8")[:, ::-1]
    array.flags.writeable = False
    found = Predictor(voxelwise, patch=(4, 4)).predict(array).probs
    torch.testing.assert_close(found[0], volume[0].flip(0))


def test_memory_does_not_grow_with_windows():
    calls, alive, references = [], [], []

    def model(windows):
        probs = voxelwise(windows)
        calls.append(1)
        alive.append(sum(1 for ref in references if ref() is not None))
        references.append(weakref.ref(probs))
        return probs

    Predictor(model, patch=(4, 4), stride=(1, 1), batch_size=1).predict(image(8, (9, 9)))
    assert len(calls) == 36
    assert max(alive) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blending": "linear"}, r"blending is 'linear'"),
        ({"overlap": 1.0}, r"overlap is 1.0"),
        ({"scale": 0.0}, r"scale is 0.0; expected a number in \(0"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"flips": (2,)}, r"flips is \(2,\); expected distinct axes out of \(0, 1\)"),
        ({"flips": (0, 0)}, r"flips is \(0, 0\)"),
        ({"stride": (4,)}, r"stride \(4,\)"),
        ({"stride": (5, 4)}, r"stride is \(5, 4\); expected at most the patch"),
        ({"models": []}, r"models is empty"),
        ({"memory_gb": -1.0}, r"memory_gb is -1.0; expected a number in \(0"),
        ({"memory_gb": 4.0}, r"memory_gb needs a plan"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(**{"models": voxelwise, "patch": (4, 4), **arguments})


@pytest.mark.parametrize(("overlap", "stride"), [(0.0, (10, 7)), (0.5, (5, 3)), (0.8, (2, 1)), (0.99, (1, 1))])
def test_overlap_gives_the_stride(overlap, stride):
    assert Predictor(voxelwise, patch=(10, 7), overlap=overlap).stride == stride


def test_wrong_models_and_images_are_named():
    volume = image(9, (6, 6))
    with pytest.raises(ValueError, match=r"image has shape \(6, 6\); expected \(C, \*S\) with 2 spatial axes"):
        Predictor(voxelwise, patch=(4, 4)).predict(volume[0])
    with pytest.raises(ValueError, match=r"expected probabilities, not logits"):
        Predictor(lambda windows: 5 * voxelwise(windows), patch=(4, 4)).predict(volume)
    with pytest.raises(ValueError, match=r"the model returned NetOutput; expected probabilities"):
        Predictor(lambda windows: NetOutput(voxelwise(windows)), patch=(4, 4)).predict(volume)
    with pytest.raises(ValueError, match=r"the model returned \(4, 2, 2, 4\)"):
        Predictor(lambda windows: voxelwise(windows)[:, :, ::2], patch=(4, 4)).predict(volume)
    with pytest.raises(ValueError, match=r"probabilities that are NaN or infinite"):
        Predictor(lambda windows: voxelwise(windows) * float("nan"), patch=(4, 4)).predict(volume)
    volume[0, 1, 2], volume[0, 3, 3] = float("nan"), float("-inf")
    with pytest.raises(ValueError, match=r"image has 2 NaN or infinite voxels of 36"):
        Predictor(voxelwise, patch=(4, 4)).predict(volume)


def test_models_of_different_classes_are_no_ensemble():
    def three(windows):
        return torch.full((len(windows), 3, *windows.shape[2:]), 1 / 3)

    with pytest.raises(ValueError, match="a model has 3 classes; expected 2, as the first one has"):
        Predictor([voxelwise, three], patch=(4, 4)).predict(image(9, (6, 6)))


def test_large_finite_values_are_no_error():
    volume = torch.full((1, 6, 6), 3e38)  # their sum is infinite
    found = Predictor(lambda windows: voxelwise(torch.zeros_like(windows)), patch=(4, 4)).predict(volume)
    assert found.probs.isfinite().all()
