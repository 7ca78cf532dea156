"""Pathology encoders by short names: what their authors say of them, and how timm builds them.

Checked in November 2026 against the authors' repositories and papers; the cards of Virchow and
H-optimus were not at hand, so their licences and gates against TRIDENT and LazySlide, which use
them. No model was tried with this kit: the gated ones' terms do not allow it to fetch them by
itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kit.base import Normalization, Pool


@dataclass(frozen=True)
class Card:
    """What is known of a published encoder.

    Attributes
    ----------
    repository
        On the Hugging Face hub.
    architecture, options
        How timm builds it; layers are named as `timm.layers` has them.
    parameters
        In millions.
    pool
        What its authors take from it.
    gated
        Whether the hub asks for an account that has accepted the terms.
    trained_on
        Its tiles, and whether CAMELYON's slides, which PatchCamelyon is cut from, are among them.
    """

    repository: str
    architecture: str
    parameters: int
    licence: str
    gated: bool
    trained_on: str
    normalize: Normalization = "imagenet"
    pool: tuple[Pool, ...] = ("class",)
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224

    @property
    def page(self) -> str:
        """Where its terms are read and accepted."""
        return f"https://huggingface.co/{self.repository}"


_NOTE = (
    "None of them was tried with this kit. Terms change: those on a model's page count, and it is "
    "printed before its weights are fetched."
)
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "dynamic_img_size": True, **_SWIGLU}
_OPTIMUS = {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False}
_NC = "CC BY-NC-ND 4.0"
_KAIKO = "Kaiko Non-Commercial Public License"

CARDS: dict[str, Card] = {
    "uni": Card(
        "MahmoodLab/UNI",
        "vit_large_patch16_224",
        303,
        _NC,
        gated=True,
        trained_on="100,000 slides that are not public; no CAMELYON, say its authors",
        options={"init_values": 1e-5, "dynamic_img_size": True},
    ),
    "uni2-h": Card(
        "MahmoodLab/UNI2-h",
        "vit_giant_patch14_224",
        681,
        _NC,
        gated=True,
        trained_on="350,000 slides; whether CAMELYON is among them was not checked",
        options={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **_SWIGLU,
        },
    ),
    "virchow": Card(
        "paige-ai/Virchow",
        "vit_huge_patch14_224",
        631,
        "Apache 2.0",
        gated=True,
        trained_on="1.5 million slides of Memorial Sloan Kettering; no CAMELYON",
        pool=("class", "mean"),
        options=_VIRCHOW,
    ),
    "virchow2": Card(
        "paige-ai/Virchow2",
        "vit_huge_patch14_224",
        631,
        _NC,
        gated=True,
        trained_on="3.1 million slides of several institutions; whether CAMELYON is among them was "
        "not checked",
        pool=("class", "mean"),
        options={**_VIRCHOW, "reg_tokens": 4},
    ),
    "h-optimus-0": Card(
        "bioptimus/H-optimus-0",
        "vit_giant_patch14_reg4_dinov2",
        1135,
        "Apache 2.0",
        gated=True,
        trained_on="500,000 slides that are not public: CAMELYON could be among them",
        normalize="bioptimus",
        options=_OPTIMUS,
    ),
    "h-optimus-1": Card(
        "bioptimus/H-optimus-1",
        "vit_giant_patch14_reg4_dinov2",
        1135,
        _NC,
        gated=True,
        trained_on="1 million slides that are not public: CAMELYON could be among them",
        normalize="bioptimus",
        options=_OPTIMUS,
    ),
    "gigapath": Card(
        "prov-gigapath/prov-gigapath",
        "vit_giant_patch14_dinov2",
        1135,
        "Apache 2.0, research only by its card",
        gated=True,
        trained_on="171,000 slides of Providence; no CAMELYON",
        options={
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "mlp_ratio": 5.33334,
        },
    ),
    "kaiko-s16": Card(
        "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
        "vit_small_patch16_224",
        22,
        _KAIKO,
        gated=False,
        trained_on="TCGA; no CAMELYON",
        normalize="half",
        options={"dynamic_img_size": True},
    ),
    "kaiko-b16": Card(
        "1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms",
        "vit_base_patch16_224",
        86,
        _KAIKO,
        gated=False,
        trained_on="TCGA; no CAMELYON",
        normalize="half",
        options={"dynamic_img_size": True},
    ),
    "lunit-s16": Card(
        "1aurent/vit_small_patch16_224.lunit_dino",
        "vit_small_patch16_224",
        22,
        "Lunit Public License, not for commercial use",
        gated=False,
        trained_on="TCGA (19 million tiles); no CAMELYON",
        normalize="lunit",
        options={"dynamic_img_size": True},
    ),
    "midnight": Card(
        "kaiko-ai/midnight",
        "vit_giant_patch14_dinov2",
        1135,
        "MIT",
        gated=False,
        trained_on="TCGA (12,000 slides); no CAMELYON",
        normalize="half",
        pool=("class", "mean"),
        options={"img_size": 224},
    ),
}
"""Published pathology encoders by their short names."""


def describe_cards() -> str:
    """Return the cards as a table of text."""
    heading = ("name", "parameters", "size", "normalize", "pool", "licence", "gate")
    rows = [
        (
            name,
            f"{card.parameters:,} M",
            str(card.size),
            card.normalize,
            "+".join(card.pool),
            card.licence,
            "gated" if card.gated else "open",
        )
        for name, card in CARDS.items()
    ]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heading, *rows)
    ]
    origins = [f"{name}: {card.page}\n    {card.trained_on}" for name, card in CARDS.items()]
    return "\n".join([*lines, "", *origins, "", _NOTE])
