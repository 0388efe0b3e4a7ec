# SPDX-License-Identifier: Apache-2.0
"""Which cases a step sees: a pure function of seed and step, so that resume and process count change nothing."""

from collections.abc import Sequence

import numpy as np

from ssmis.data.cases import DataError, check_no_overlap

_MASK64 = (1 << 64) - 1


def batch_key(seed: int, step: int, micro_step: int = 0, rank: int = 0) -> int:
    """Mix four integers into one in [0, 2**63); near arguments give unrelated keys (the splitmix64 finaliser)."""
    state = 0
    for part in (seed, step, micro_step, rank):
        state = (state ^ (part & _MASK64)) + 0x9E3779B97F4A7C15 & _MASK64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK64
        state ^= state >> 31
    return state >> 1


class TwoStreamSampler:
    """`sampler(step) -> (labelled ids, unlabelled ids)`, each stream a sequence of random permutations of its cases.

    Every case of a stream comes once before any comes again. A batch that straddles two permutations may hold a
    case twice.

    Args:
        labelled_ids: ids of labelled cases.
        unlabelled_ids: ids of unlabelled cases; none may be labelled too.
        labelled_per_batch: labelled cases a step, at least 1.
        unlabelled_per_batch: unlabelled cases a step; 0 for supervised training.
        seed: with the step, decides everything.

    Raises:
        DataError: a case twice, or fewer cases than a batch needs.
    """

    def __init__(
        self,
        labelled_ids: Sequence[str],
        unlabelled_ids: Sequence[str] = (),
        *,
        labelled_per_batch: int = 2,
        unlabelled_per_batch: int = 2,
        seed: int = 0,
    ) -> None:
        check_no_overlap(labelled_ids=labelled_ids, unlabelled_ids=unlabelled_ids)
        if labelled_per_batch < 1 or unlabelled_per_batch < 0:
            raise ValueError(
                f"labelled_per_batch is {labelled_per_batch} and unlabelled_per_batch {unlabelled_per_batch}; "
                "expected at least 1 and at least 0"
            )
        for name, ids, needed in (
            ("labelled", labelled_ids, labelled_per_batch),
            ("unlabelled", unlabelled_ids, unlabelled_per_batch),
        ):
            if len(ids) < needed:
                raise DataError(f"there are {len(ids)} {name} cases; a batch needs {needed}")
        self.labelled_ids = tuple(labelled_ids)
        self.unlabelled_ids = tuple(unlabelled_ids)
        self.labelled_per_batch = labelled_per_batch
        self.unlabelled_per_batch = unlabelled_per_batch
        self.seed = seed

    def __call__(self, step: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of one step, `step >= 0`."""
        if step < 0:
            raise ValueError(f"step is {step}; expected at least 0")
        return (
            self._take(self.labelled_ids, self.labelled_per_batch, step, stream=1),
            self._take(self.unlabelled_ids, self.unlabelled_per_batch, step, stream=2),
        )

    def _take(self, ids: tuple[str, ...], count: int, step: int, stream: int) -> tuple[str, ...]:
        orders: dict[int, np.ndarray] = {}
        taken = []
        for position in range(step * count, (step + 1) * count):
            epoch, index = divmod(position, len(ids))
            if epoch not in orders:
                orders[epoch] = np.random.default_rng(batch_key(self.seed, epoch, stream)).permutation(len(ids))
            taken.append(ids[orders[epoch][index]])
        return tuple(taken)
