# SPDX-License-Identifier: Apache-2.0
"""Several banks: what they are told waits until the step was applied, and they know when a contrast can use them."""

import pytest
import torch

from ssmis.memory import Banks, FIFOBank


def told(value: float) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.full((2, 4), value)
    vectors[1] = -vectors[1]
    return vectors.requires_grad_(), torch.arange(2)


def two() -> Banks:
    return Banks({name: FIFOBank(2, 4, slots=3) for name in ("fine", "coarse")})


def test_candidates_wait_until_the_step_was_applied():
    banks = two()
    banks.begin_step()
    for value in (1.0, 2.0):  # two micro-steps
        _, labels = banks.ask("fine", *told(value))
        assert (labels == -1).all()
    banks.write()
    assert banks.bank("fine").filled.tolist() == [2, 2]
    assert banks.bank("coarse").filled.tolist() == [0, 0]
    banks.write()  # nothing waits any more
    assert banks.bank("fine").filled.tolist() == [2, 2]


def test_a_skipped_step_is_forgotten():
    banks = two()
    banks.begin_step()
    banks.ask("fine", *told(1.0))
    banks.begin_step()
    banks.write()
    assert banks.bank("fine").filled.sum() == 0


def test_a_bank_is_ready_from_the_step_after_two_classes_were_written_on():
    banks = two()
    banks.begin_step()
    banks.ask("fine", *told(1.0))
    banks.write()
    assert not banks.ready("fine")
    banks.find_ready()
    assert banks.ready("fine")
    assert not banks.ready("coarse")
    loaded = two()
    loaded.load_state_dict(banks.state_dict())
    loaded.find_ready()
    assert loaded.ready("fine")


def test_a_bank_that_is_another_one_now_is_neither_ready_nor_waited_for():
    def full() -> Banks:
        banks = two()
        for name in banks:
            banks.bank(name).write(*told(1.0))
            banks.ask(name, *told(1.0))
        banks.find_ready()
        assert banks.ready("fine")
        return banks

    loaded, replaced, shorter = full(), full(), full()
    loaded.load_state_dict(two().state_dict())
    replaced["fine"] = FIFOBank(2, 4, slots=3)
    del shorter["fine"]
    for banks in (loaded, replaced, shorter):
        banks.find_ready()
        banks.write()
        assert not banks.ready("fine")
    assert loaded.bank("fine").filled.sum() == replaced.bank("fine").filled.sum() == 0
    assert replaced.ready("coarse")


def test_what_waits_holds_no_graph_and_unknown_banks_are_named():
    banks = two()
    vectors, labels = told(1.0)
    banks.ask("fine", vectors * 2, labels)
    assert not banks._waiting["fine"][0][0].requires_grad
    with pytest.raises(KeyError, match="medium"):
        banks.ask("medium", vectors, labels)
    with pytest.raises(ValueError, match="expected floating point"):
        banks.ask("fine", vectors[:, :3], labels)
    assert len(banks._waiting["fine"]) == 1
