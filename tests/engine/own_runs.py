# SPDX-License-Identifier: Apache-2.0
"""Run folders without a training, and predictors whose answer is known."""

import json
from dataclasses import asdict

import torch

from ssmis.data import Plan
from ssmis.data.plan import Channel
from ssmis.engine.checkpoint import save_checkpoint
from ssmis.engine.trained import build_recipe
from ssmis.options import TrainOptions


def small_plan(dims=3, *, spacing=1.0, values=(0, 1), channels=1, kind="zscore", patch=16):
    """A plan for tiny nets."""
    names = ("background", *(f"label {value}" for value in values[1:]))
    return Plan(
        dims, tuple(Channel(kind=kind) for _ in range(channels)), tuple(values), names, (spacing,) * dims,
        (patch,) * dims, (patch,) * dims, 1, ((2,) * dims,) * 4, ((3,) * dims,) * 5, (2, 3, 4, 4, 4),
    )  # fmt: skip


def write_run(folder, plan, *, seed=0, data="DATA", **options):
    """A run folder with untrained nets."""
    usual = {"recipe": "supervised", "nets": ["unet"]}
    chosen = TrainOptions(data=str(data), out=str(folder), seed=seed, **(usual | options))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps(asdict(chosen)))
    plan.save(folder / "plan.json")
    torch.manual_seed(seed)
    recipe = build_recipe(chosen, plan)
    with torch.no_grad():  # weights of a fresh net give nearly constant logits
        for net in recipe.nets().values():
            net.head.conv.weight.mul_(20)
    save_checkpoint(folder / "checkpoints" / "last.pt", {"recipe": recipe.state_dict(), "ema": None})
    return folder


def by_threshold(levels):
    """A model that reads the class off the intensity: class k where it is nearest to level k."""
    values = torch.tensor(levels)

    def model(windows):
        away = (windows[:, :1] - values.view(1, -1, *[1] * (windows.ndim - 2))).abs()
        return torch.nn.functional.one_hot(away.argmin(1), len(levels)).movedim(-1, 1).float()

    return model
