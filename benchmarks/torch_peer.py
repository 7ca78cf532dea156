"""Training as most public kits do it: a TIFF an item, OpenCV, albumentations, a DataLoader."""

import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import pandas as pd
import plain
import torch
from albumentations.pytorch import ToTensorV2
from serve import Options, Task, require, serve
from torch.utils.data import DataLoader, Dataset

AUGMENTATIONS = {
    "none": [],
    "d4": [A.D4(p=1)],
    "stain": [
        A.D4(p=1),
        A.HEStain(
            method="preset",
            preset="ruifrok",
            intensity_scale_range=(0.7, 1.3),
            intensity_shift_range=(-0.2, 0.2),
            augment_background=False,
            p=1,
        ),
    ],
}


class TiffDataset(Dataset[tuple[torch.Tensor, int]]):
    """Tiles read one by one from a folder."""

    def __init__(self, folder: Path, table: pd.DataFrame, size: int, augment: str) -> None:
        self.files = [str(folder / name) for name in table["file"]]
        self.labels = table["label"].tolist()
        resize = A.Resize(size, size, interpolation=cv2.INTER_NEAREST)
        normalize = A.Normalize(mean=(0, 0, 0), std=(1, 1, 1))
        self.transform = A.Compose([resize, *AUGMENTATIONS[augment], normalize, ToTensorV2()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = cv2.cvtColor(cv2.imread(self.files[index]), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"], self.labels[index]


def prepare(options: Options) -> Task:
    """Make the loader and the network of options tiffs, table, model, size, batch, workers."""
    require(options["device"])
    table = pd.read_csv(options["table"])
    folder = Path(options["tiffs"]) / "train"
    loader = DataLoader(
        TiffDataset(folder, table, options["size"], options["augment"]),
        batch_size=options["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=options["workers"],
        persistent_workers=options["workers"] > 0,
    )
    trainer = plain.Trainer(options["model"], options["device"])
    settings = f"fp32, NCHW, {options['workers']} workers, {torch.get_num_threads()} threads"
    libraries = ("torch", "albumentations", "opencv-python-headless")
    return Task(lambda: trainer.train(loader), settings, libraries)


if __name__ == "__main__":
    serve(prepare)
