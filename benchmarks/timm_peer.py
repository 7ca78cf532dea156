"""Training through timm's own loader on the same TIFF files.

timm has neither quarter turns nor stains: its flips stand for the one, its flips and colour
jitter for the other.
"""

from typing import Any

import plain
import timm.data
import torch
from serve import Options, Task, require, serve
from timm.data.readers.img_extensions import add_img_extensions

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"no_aug": True},
    "d4": {"hflip": 0.5, "vflip": 0.5, "color_jitter": 0.0},
    "stain": {"hflip": 0.5, "vflip": 0.5, "color_jitter": 0.2},
}
NAMES = {"none": "", "d4": ", flips alone", "stain": ", flips and colour jitter"}


def prepare(options: Options) -> Task:
    """Make the loader and the network of options classes, model, size, batch, workers."""
    require(options["device"])
    add_img_extensions(".tif")
    loader = timm.data.create_loader(
        timm.data.ImageDataset(options["classes"]),
        (3, options["size"], options["size"]),
        options["batch"],
        is_training=True,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        interpolation="nearest",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=options["workers"],
        persistent_workers=options["workers"] > 0,
        use_prefetcher=False,
        device=torch.device(options["device"]),
        **AUGMENTATIONS[options["augment"]],
    )
    trainer = plain.Trainer(options["model"], options["device"])
    settings = (
        f"fp32, NCHW, {options['workers']} workers, {torch.get_num_threads()} threads"
        f"{NAMES[options['augment']]}"
    )
    return Task(lambda: trainer.train(loader), settings, ("timm", "torch"))


if __name__ == "__main__":
    serve(prepare)
