# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from ssmis.engine.postprocess import largest_component


def test_small_islands_of_each_class_become_background():
    labels = torch.tensor(
        [
            [1, 1, 0, 2, 0, 1],
            [1, 0, 0, 2, 0, 0],
            [0, 2, 0, 2, 0, 3],
            [1, 2, 0, 0, 3, 0],
        ]
    )
    before = labels.clone()
    found = largest_component(labels, classes=(1, 2))
    assert found.tolist() == [[1, 1, 0, 2, 0, 0], [1, 0, 0, 2, 0, 0], [0, 0, 0, 2, 0, 3], [0, 0, 0, 0, 3, 0]]
    assert torch.equal(labels, before)
    assert found.dtype == labels.dtype


def test_voxels_that_share_only_an_edge_are_not_connected_in_3d():
    labels = torch.zeros(3, 3, 3, dtype=torch.uint8)
    labels[0, 0, :2] = 1
    labels[1, 1, 1] = 1
    found = largest_component(labels, classes=(1,))
    assert found.nonzero().tolist() == [[0, 0, 0], [0, 0, 1]]


def test_ties_and_absent_classes():
    labels = torch.tensor([0, 1, 0, 1, 0])
    assert largest_component(labels, classes=(1, 2)).tolist() == [0, 1, 0, 0, 0]
    assert largest_component(labels, classes=()).tolist() == labels.tolist()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"labels has dtype torch.float32"):
        largest_component(torch.ones(3, 3), classes=(1,))
    with pytest.raises(ValueError, match=r"classes is \(0, 1\); expected foreground classes"):
        largest_component(torch.ones(3, 3, dtype=torch.int64), classes=(0, 1))
