"""The notebook's own Keras pipeline: `ImageDataGenerator` from TIFF files, to train or predict.

Keras has neither quarter turns nor stains: its flips stand for the one, its flips and shifts of
the channels for the other.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pathlib import Path
from typing import Any

from serve import Options, Task, serve

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "d4": {"horizontal_flip": True, "vertical_flip": True},
    "stain": {"horizontal_flip": True, "vertical_flip": True, "channel_shift_range": 20.0},
}
NAMES = {"none": "", "d4": ", flips alone", "stain": ", flips and channel shifts"}


def create_network() -> Any:
    """Build and compile the notebook's network, BatchNorm before the activation."""
    import keras
    from keras import layers

    network = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.MaxPooling2D(3),
            layers.Conv2D(64, 3),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.MaxPooling2D(3),
            layers.Flatten(),
            layers.Dense(128),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Dense(1),
            layers.Activation("sigmoid"),
        ]
    )
    network.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return network


def prepare(options: Options) -> Task:
    """Make the generator and the network of options tiffs, split, table, batch, augment."""
    import pandas as pd
    import tensorflow as tf
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    train = options["split"] == "train"
    batches = ImageDataGenerator(rescale=1 / 255, **AUGMENTATIONS[options["augment"]])
    generator = batches.flow_from_dataframe(
        pd.read_csv(options["table"]),
        directory=str(Path(options["tiffs"]) / options["split"]),
        x_col="file",
        y_col="label" if train else None,
        class_mode="raw" if train else None,
        target_size=(32, 32),
        batch_size=options["batch"],
        shuffle=train,
    )
    network = create_network()

    def run() -> int:
        if train:
            network.fit(generator, epochs=1, verbose=0)
        else:
            network.predict(generator, verbose=0)
        return int(generator.n)

    # 0 lets TensorFlow take every core.
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()
    settings = f"fp32, {threads} threads{NAMES[options['augment']]}"
    return Task(run, settings, ("tensorflow_cpu", "keras"))


if __name__ == "__main__":
    serve(prepare)
