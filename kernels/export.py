"""Take a finished run out of the kit: to ONNX, to timm, to TensorBoard.

--out writes one ONNX file whose input is uint8 tiles, and leaves none unless ONNX Runtime gives
PyTorch's logits on the tiles of --data. --timm writes model.safetensors and config.json, which
timm.create_model("local-dir:FOLDER", pretrained=True) reads. --tensorboard writes the history.
"""

from pathlib import Path

import numpy as np
import tyro

from kit.base import KitError, exit_on_error
from kit.data import open_store
from kit.runs import export


def main(
    run: Path,
    out: Path | None = None,
    timm: Path | None = None,
    tensorboard: Path | None = None,
    data: Path = Path("data"),
    tiles: int = 512,
) -> None:
    """Write what is asked for.

    Parameters
    ----------
    run
        Folder of the run.
    out
        ONNX file.
    timm
        New folder, for a run of a timm model.
    tensorboard
        Folder of TensorBoard's runs.
    data
        Folder of the competition's data, to check the ONNX file on.
    tiles
        How many test tiles to check it on, spread over all of them.
    """
    if out is None and timm is None and tensorboard is None:
        raise KitError("say what to write: --out model.onnx, --timm FOLDER or --tensorboard FOLDER")
    if out is not None:
        test = open_store(data).test
        rows = np.unique(np.linspace(0, len(test) - 1, max(1, tiles)).astype(int))
        difference = export.write_onnx(out, run, test.tiles[rows])
        print(
            f"{out}: {out.stat().st_size / 1e6:,.1f} MB; its logits are within {difference:.1g} of "
            f"PyTorch's (float32) on {len(rows):,} tiles"
        )
    if timm is not None:
        export.write_timm(timm, run)
        print(f'{timm}: for timm.create_model("local-dir:{timm}", pretrained=True)')
    if tensorboard is not None:
        export.write_tensorboard(tensorboard, run)
        print(f"{tensorboard}: look at it with: tensorboard --logdir {tensorboard}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
