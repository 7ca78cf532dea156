"""Pretrained weights that this machine has fetched before: no network is needed for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kit.models.cards import CARDS
from kit.models.hub import WEIGHT_FILES


def cached_weights() -> dict[str, Path]:
    """Return the files of weights in the caches of the hub and of PyTorch, by the model's name.

    Of the hub's models those of timm and the pathology models of `CARDS` count.
    """
    return dict([*_in_torch_cache(), *_in_hub_cache()])


def _in_hub_cache() -> Iterator[tuple[str, Path]]:
    import timm
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    short_names = {card.repository: name for name, card in CARDS.items()}
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        owner, _, name = repository.repo_id.partition("/")
        known = name if owner == "timm" and timm.is_model(name) else None
        model = short_names.get(repository.repo_id, known)
        files = [file for revision in repository.revisions for file in revision.files]
        found = [file.file_path for file in files if file.file_name in WEIGHT_FILES]
        if model is not None and found:
            yield model, max(found)


def _in_torch_cache() -> Iterator[tuple[str, Path]]:
    files = {path.name: path for path in Path(torch.hub.get_dir(), "checkpoints").glob("*.pth")}
    if not files:
        return
    import timm

    for name in timm.list_pretrained():
        config: Any = timm.get_pretrained_cfg(name)
        file = (config.url or "").rpartition("/")[2]
        if file in files:
            yield name, files[file]
