# SPDX-License-Identifier: Apache-2.0
"""The contract between a method and the training loop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssmis._checks import check_not_negative
from ssmis.data.batch import Batch
from ssmis.nets.output import NetOutput
from ssmis.uncertainty import entropy_of_probs


@dataclass(frozen=True)
class Term:
    """One term of a loss: a float32 scalar, its weight, and the names of the students it must train."""

    value: Tensor
    weight: float
    reaches: tuple[str, ...]


class Terms(Mapping[str, Term]):
    """The named terms of one step, in the order they were added; the engine adds them up and checks them.

    Attributes:
        notes: name -> number that is logged beside the terms and trains nothing.
    """

    def __init__(self) -> None:
        self._terms: dict[str, Term] = {}
        self.notes: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, weight: float = 1.0, *, reaches: Sequence[str]) -> None:
        """Add a term.

        Raises:
            ValueError: the name is taken, the value is no scalar, the weight is negative or not finite, or `reaches`
                is empty.
        """
        if name in self._terms:
            raise ValueError(f"term {name!r} was added twice")
        if value.ndim != 0:
            raise ValueError(f"term {name!r} has shape {tuple(value.shape)}; expected a scalar")
        check_not_negative(**{f"weight of term {name!r}": weight})
        if not reaches:
            raise ValueError(f"term {name!r} reaches no student; name the ones it must train")
        self._terms[name] = Term(value.float(), float(weight), tuple(reaches))

    def total(self) -> Tensor:
        """Weighted sum of the terms with weight > 0; a scalar that carries gradient."""
        live = [term.weight * term.value for term in self._terms.values() if term.weight > 0]
        if not live:
            raise ValueError("no term has a weight > 0")
        return torch.stack(live).sum()

    def __getitem__(self, name: str) -> Term:
        return self._terms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)


@dataclass(frozen=True)
class Prediction:
    """Class probabilities `(B, K, *S)` and an uncertainty map `(B, *S)` in [0, 1] (normalised entropy)."""

    probs: Tensor
    uncertainty: Tensor

    @classmethod
    def from_probs(cls, probs: Tensor) -> "Prediction":
        """Wrap probabilities; the uncertainty is their entropy over log K."""
        return cls(probs, entropy_of_probs(probs))


@dataclass(frozen=True)
class Stage:
    """A named phase of training with its share of the run; `reset_optimizer` starts it with a fresh optimiser."""

    name: str
    share: float
    reset_optimizer: bool = False


@dataclass(frozen=True)
class StageContext:
    """What a recipe may use when a stage begins: the stage, the step it starts at and the run folder."""

    stage: Stage
    step: int
    folder: Path


class Recipe(nn.Module):
    """A method: owns its students, teachers and banks as submodules, so `state_dict()` is the whole method.

    Subclasses write `forward(batch, progress) -> Terms`. Forward changes no buffer but BatchNorm's; what banks or
    teachers learn is collected there and written in `after_step`, which runs once per applied step.

    A term may begin late: it is added from some progress on, or has weight 0 until then (until a bank holds something,
    say), and is held to its word from its first step with a weight.

    Args:
        students: name -> trained net, each returning a `NetOutput`.
        heads: name -> further trained module that works on what the nets return, such as a fusion of their logits. It
            is a student too, for optimiser, averages, checkpoints and the check of the terms; only, images are not
            given to it.
        predict_with: names of the nets averaged in `predict`; default: all.

    Attributes:
        passes: how often a step runs each net at most. One, on everything at once, so that BatchNorm sees one batch; a
            method that needs the result of the first pass for a second one (mixed volumes) declares 2.
    """

    passes: ClassVar[int] = 1

    def __init__(
        self,
        students: Mapping[str, nn.Module],
        *,
        heads: Mapping[str, nn.Module] | None = None,
        predict_with: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        heads = heads or {}
        if shared := set(students) & set(heads):
            raise ValueError(f"heads are {list(heads)}; {sorted(shared)} are names of nets already")
        self.students = nn.ModuleDict({**students, **heads})
        self.net_names = tuple(students)
        self.predict_with = tuple(predict_with or students)
        unknown = set(self.predict_with) - set(students)
        if unknown:
            raise ValueError(f"predict_with names {sorted(unknown)}; the nets are {list(students)}")

    @classmethod
    def arguments_for(cls, patch: Sequence[int]) -> dict[str, Any]:
        """Arguments that a training on patches of this size should have, where the defaults do not fit it.

        `ssmis train` asks for them and passes those that the recipe takes and nobody has set.
        """
        return {}

    def nets(self) -> dict[str, nn.Module]:
        """The students that take images: name -> net; all but the heads."""
        return {name: self.students[name] for name in self.net_names}

    def run_net(self, name: str, images: Tensor) -> NetOutput:
        """Run a net on images.

        Raises:
            ValueError: it returns something else than a `NetOutput`, as nets of other libraries do.
        """
        output: NetOutput = self.students[name](images)
        if not hasattr(output, "logits"):
            raise ValueError(
                f"net {name!r} ({type(self.students[name]).__name__}) returned a {type(output).__name__}; "
                "expected a NetOutput: wrap a net of another library in ssmis.nets.NetAdapter"
            )
        return output

    def forward(self, batch: Batch, progress: float) -> Terms:
        """Compute the terms of one step; `progress` in [0, 1] is the share of the run that is over."""
        raise TypeError(f"{type(self).__name__} must define forward(batch, progress) -> Terms")

    def begin_step(self) -> None:
        """Forget what a skipped step collected; runs once before the forward passes of every step."""

    def after_step(self, progress: float) -> None:
        """Update teachers and banks; runs once per applied step, after a skipped step not at all."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, two a student: weights, and norms and biases (`is_flat`: no decoupled weight decay).

        Further keys a group may have: `lr_scale`, `weight_decay`, `clip_norm`. Gradients are clipped by the norm over
        all groups of one `name`, here the student's: a spike in one net does not slow the other.
        """
        groups: list[dict[str, Any]] = []
        for name, net in self.students.items():
            trained = [p for p in net.parameters() if p.requires_grad]
            groups.append({"name": name, "params": [p for p in trained if p.ndim > 1]})
            groups.append({"name": name, "params": [p for p in trained if p.ndim <= 1], "is_flat": True})
        return groups

    def stages(self) -> tuple[Stage, ...]:
        """Phases of training; their shares add up to 1."""
        return (Stage("train", 1.0),)

    def begin_stage(self, context: StageContext) -> None:
        """Prepare a stage, such as by freezing nets (`requires_grad_(False)`), which a checkpoint remembers.

        What else it decides must live in buffers or the run folder, since a resume calls it no more.
        """

    def deployed(self) -> Mapping[str, nn.Module]:
        """The nets that predict: name -> net."""
        return {name: self.students[name] for name in self.predict_with}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Mean softmax of the deployed nets for `(B, C, *S)` images, in eval mode; deterministic."""
        probs: Tensor | None = None
        nets = self.deployed()
        for net in nets.values():
            modes = [(module, module.training) for module in net.modules()]
            try:
                output: NetOutput = net.eval()(images)
            finally:
                for module, mode in modes:
                    module.training = mode
            own = output.logits.float().softmax(1)
            probs = own if probs is None else probs + own
        if probs is None:
            raise ValueError("no net to predict with")
        return Prediction.from_probs(probs / len(nets))
