"""Where a model comes from: timm's names, the hub, a folder, or a pathology model's short name."""

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from kit.base import CLASS_NAMES, KitError
from kit.models.cards import CARDS, Card
from kit.models.hub import WEIGHT_FILES, explained, fetch_weights

HUB = "hf-hub:"
FOLDER = "local-dir:"


@dataclass(frozen=True)
class Source:
    """How timm builds a model, and where its weights are.

    Attributes
    ----------
    architecture
        As timm names it, with the tag of its weights if one is asked for.
    options
        What timm builds it with.
    config
        timm's `pretrained_cfg`: size, mean, std, ...
    place
        A repository of the hub, or a folder; None for timm's own weights.
    """

    architecture: str
    options: Mapping[str, Any]
    config: Mapping[str, Any]
    place: str | Path | None = None

    @property
    def size(self) -> int:
        """Side of the images that the model was made for, in pixels."""
        return int((self.config.get("input_size") or (3, 224, 224))[-1])

    @property
    def has_weights(self) -> bool:
        """Whether there are published weights."""
        known = ("url", "hf_hub_id", "file")
        return self.place is not None or any(self.config.get(key) for key in known)

    @property
    def answers_tumour(self) -> bool:
        """Whether the model's own classifier is one of this competition, as `timm_config` says."""
        classes = self.config.get("num_classes"), list(self.config.get("label_names") or ())
        return self.place is not None and classes == (1, [CLASS_NAMES[1]])

    def build(self, options: Mapping[str, Any]) -> nn.Module:
        """Build the model with random weights, or as `options` say."""
        # timm brings torchvision and seconds of imports, which the small CNN can do without.
        import timm

        given = {name: _layer(name, value) for name, value in options.items()}
        if self.place is not None:
            given["pretrained_cfg"] = dict(self.config)
        model: nn.Module = timm.create_model(self.architecture, **given)
        return model

    def find_weights(self) -> Path | None:
        """Return the file of a hub's or a folder's weights; None where timm knows its own way.

        Raises
        ------
        KitError
            If the hub does not give it, or the folder does not hold it.
        """
        if isinstance(self.place, Path):
            for name in WEIGHT_FILES:
                if (self.place / name).is_file():
                    return self.place / name
            raise KitError(
                f"{self.place} holds none of {', '.join(WEIGHT_FILES)}: name the folder of a model"
            )
        if self.place is None:
            return None
        announce(self.place)
        return fetch_weights(self.place)

    def describe(self) -> dict[str, Any]:
        """Return config.json of a folder that `local-dir:` builds the same model from."""
        config = {name: value for name, value in self.config.items() if name != "source"}
        return {
            "architecture": self.architecture.partition(".")[0],
            "model_args": dict(self.options),
            "pretrained_cfg": config,
        }


def is_elsewhere(model: str) -> bool:
    """Whether a model is described by the hub or a folder, and not by timm or the kit."""
    return model.startswith((HUB, FOLDER))


def find_source(model: str) -> Source:
    """Return how a model is built that a recipe names.

    Raises
    ------
    KitError
        If there is no such model, or the hub does not say how to build it.
    """
    if model in CARDS:
        return _card_source(CARDS[model])
    if model.startswith(HUB):
        return _hub_source(model.removeprefix(HUB))
    if model.startswith(FOLDER):
        return _folder_source(Path(model.removeprefix(FOLDER)))
    return _timm_source(model)


def _card_source(card: Card) -> Source:
    config = {
        "input_size": (3, card.size, card.size),
        "fixed_input_size": not card.options.get("dynamic_img_size", False),
        "num_classes": 0,
        "classifier": "head",
        "first_conv": "patch_embed.proj",
        "hf_hub_id": card.repository,
    }
    return Source(card.architecture, card.options, config, card.repository)


def _hub_source(repository: str) -> Source:
    from timm.models import load_model_config_from_hf

    with explained(repository):
        try:
            config, architecture, options = load_model_config_from_hf(repository)
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, AttributeError) as error:
            raise _not_timms(f"config.json of https://huggingface.co/{repository}") from error
    return _checked(Source(architecture, options, config, repository), HUB + repository)


def _folder_source(folder: Path) -> Source:
    from timm.models._hub import load_model_config_from_path

    try:
        config, architecture, options = load_model_config_from_path(folder)
    except OSError as error:
        raise KitError(
            f"{folder} holds no config.json that can be read: {FOLDER} takes the folder of a model "
            "as timm writes it"
        ) from error
    except (ValueError, LookupError, AttributeError) as error:
        raise _not_timms(str(folder / "config.json")) from error
    return _checked(Source(architecture, options, config, folder), f"{FOLDER}{folder}")


def _checked(source: Source, name: str) -> Source:
    import timm

    if not timm.is_model(source.architecture):
        raise KitError(
            f"{name} is made for timm's model {source.architecture[:80]!r}, which timm "
            f"{timm.__version__} has not: install a newer timm, or choose another model"
        )
    return source


def _not_timms(file: str) -> KitError:
    return KitError(
        f"{file} does not describe a model of timm: choose one with timm as the library on its page"
    )


def _timm_source(name: str) -> Source:
    import timm

    if not timm.is_model(name):
        close = ", ".join(difflib.get_close_matches(name, [*CARDS, *timm.list_models()]))
        hint = f"; did you mean {close}?" if close else ""
        raise KitError(
            f"no model {name}: give small, compact, the name of a timm model, hf-hub:OWNER/NAME, "
            f"local-dir:FOLDER or FILE.py:NAME{hint}"
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        known = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise KitError(
            f"{architecture} has no weights {tag}: its names with published weights are {known}"
        ) from error
    return Source(name, {}, {} if config is None else asdict(config))


def _layer(name: str, value: Any) -> Any:
    """Return a class of layers that an option names."""
    import timm.layers

    return getattr(timm.layers, value) if name == "mlp_layer" and isinstance(value, str) else value


@cache
def announce(repository: str) -> None:
    """Say, once, under which terms a model is that is about to be fetched from the hub."""
    page = f"https://huggingface.co/{repository.partition('@')[0]}"
    card = next((card for card in CARDS.values() if card.repository == repository), None)
    if card is None:
        print(f"note: {page} says under which licence it may be used", file=sys.stderr)
        return
    gate = "gated: its terms are to be accepted there" if card.gated else "not gated"
    print(f"note: {page}: {card.licence}; {gate}. Trained on {card.trained_on}", file=sys.stderr)
