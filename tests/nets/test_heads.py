# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from ssmis.nets import ProjectionHead, SegmentationHead

each_dims = pytest.mark.parametrize("dims", [2, 3])


@each_dims
def test_segmentation_head_is_a_linear_map_at_each_voxel(dims):
    head = SegmentationHead(3, 4, dims=dims)
    features = torch.randn(2, 3, *[5] * dims, generator=torch.Generator().manual_seed(0))
    weight = head.conv.weight.flatten(1)
    expected = torch.einsum("ke,be...->bk...", weight, features) + head.conv.bias.view(1, -1, *[1] * dims)
    torch.testing.assert_close(head(features), expected)


@each_dims
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_embeddings_have_length_one_and_pass_gradient(dims, dtype):
    head = ProjectionHead(3, 8, hidden=5, dims=dims).to(dtype)
    features = torch.randn(2, 3, *[4] * dims, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    embedding = head(features)
    assert embedding.shape == (2, 8, *[4] * dims)
    assert embedding.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones_like(embedding[:, 0]))
    embedding[:, 0].sum().backward()
    assert features.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_embeddings_of_free_length_are_what_the_layers_give():
    head = ProjectionHead(3, 2, dims=2, normalize=False)
    features = torch.ones(1, 3, 2, 2)
    assert torch.equal(head(features), head.layers(features))
    assert head.layers[0].out_channels == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SegmentationHead(3, 1, dims=2), "classes is 1"),
        (lambda: SegmentationHead(3, 2, dims=1), "dims is 1"),
        (lambda: SegmentationHead(0, 2, dims=2), "in_channels is 0"),
        (lambda: ProjectionHead(3, 0, dims=2), "out_channels is 0"),
        (lambda: ProjectionHead(3, 4, hidden=0, dims=2), "hidden is 0"),
        (lambda: ProjectionHead(3, 4, dims=4), "dims is 4"),
    ],
)
def test_impossible_heads_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
