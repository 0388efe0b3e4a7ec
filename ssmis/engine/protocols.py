# SPDX-License-Identifier: Apache-2.0
"""The protocols that have a name."""

from collections.abc import Mapping
from dataclasses import replace

from ssmis.data import Augment
from ssmis.engine.config import FitConfig
from ssmis.engine.protocol import Protocol

# Atria lie the same way in every scan: small rotations instead of mirrors and quarter turns, intensity above all.
UPRIGHT = replace(Augment.strong(), flip_axes=(), rot90=False, affine_probability=0.5)
TURNS = replace(Augment.none(), flip_axes=(0, 1), rot90=True)

_PROTOCOLS = (
    # the public code of the dual-network authors: random crop only, SGD, steps of a factor of ten
    Protocol(
        name="la/paper",
        family="la",
        patch=(112, 112, 80),
        augment=Augment.none(),
        stride=(18, 18, 4),
        convention="medpy",
    ),
    # the same method at half resolution, sized for two CPU cores; intensities of the files differ up to tenfold, since
    # they were z-scored before they were cropped, which instance norm takes out and batch norm does not
    Protocol(
        name="la/cpu",
        family="la",
        patch=(64, 64, 48),
        widths=(8, 16, 32, 64, 128),
        dropout=0.1,
        norm="instance",
        preset="copy_paste",
        scale=0.5,
        augment=UPRIGHT,
        stride=(32, 32, 16),
        blending="gaussian",
        fit=FitConfig(
            steps=3000,
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=0.02,
            clip_norm=5.0,
            ema_decay=0.995,
        ),
    ),
    # atrium-like phantoms, a table in minutes; maps this small are computed faster in float32 than in bfloat16
    Protocol(
        name="phantom",
        family="phantom",
        patch=(24, 24, 24),
        widths=(8, 16, 32, 32),
        blocks=(1, 2, 1),
        dropout=0.0,
        preset="averaged",
        scale=0.5,
        augment=UPRIGHT,
        strong_views=1,
        stride=(24, 24, 24),
        fit=FitConfig(
            steps=1000,
            precision="fp32",
            optimizer="adamw",
            learning_rate=3e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup=0.02,
            clip_norm=5.0,
            ema_decay=0.98,
        ),
    ),
    # lists, patch and windows of these families; everything else as in la/paper
    *(
        Protocol(
            name=family,
            family=family,
            patch=(96, 96, 96),
            augment=Augment.none(),
            stride=(16, 16, 16),
            convention="medpy",
        )
        for family in ("pancreas/mcnet", "pancreas/coranet", "pancreas/mcf")
    ),
    Protocol(
        name="brats2019",
        family="brats2019",
        patch=(96, 96, 96),
        augment=TURNS,
        stride=(64, 64, 64),
        convention="medpy",
    ),
    Protocol(
        name="acdc",
        family="acdc",
        patch=(256, 256),
        resize=(256, 256),
        labelled_per_batch=12,
        unlabelled_per_batch=12,
        augment=TURNS,
        stride=(256, 256),
        classes=(1, 2, 3),
        convention="medpy",
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _PROTOCOLS}
PROTOCOLS = {**PROTOCOLS, "paper": PROTOCOLS["la/paper"], "cpu": PROTOCOLS["la/cpu"]}  # short names
