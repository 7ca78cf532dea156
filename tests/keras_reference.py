"""The study's network in Keras: outputs and fifty steps' losses from given weights and inputs.

Run as a child process, `keras_reference.py BN IN.npz OUT.npz`: TensorFlow and PyTorch do not
live in one process.
"""

import sys

import keras
import numpy as np


def build(bn: str) -> keras.Model:
    layers = keras.layers

    def norm_act(name: str) -> list[keras.Layer]:
        pair = [layers.BatchNormalization(name=f"{name}_norm"), layers.ReLU()]
        return pair if bn == "before" else pair[::-1]

    return keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3, name="conv1"),
            *norm_act("conv1"),
            layers.MaxPooling2D(3),
            layers.Conv2D(64, 3, name="conv2"),
            *norm_act("conv2"),
            layers.MaxPooling2D(3),
            layers.Flatten(),
            layers.Dense(128, name="dense"),
            *norm_act("dense"),
            layers.Dense(1, name="head"),
            layers.Activation("sigmoid"),
        ]
    )


def main(bn: str, source: str, target: str) -> None:
    # In float32 rounding alone drives two trainings 1e-3 apart within fifty steps.
    keras.config.set_floatx("float64")
    given = np.load(source)
    model = build(bn)
    for layer in model.layers:
        names = [f"{layer.name}/{number}" for number in range(len(layer.weights))]
        layer.set_weights([given[name] for name in names])
    outputs = model.predict(given["images"][0], verbose=0)
    model.compile(loss="binary_crossentropy", optimizer="adam")
    losses = []
    for images, labels in zip(given["images"], given["labels"], strict=True):
        losses.append(float(model.train_on_batch(images, labels[:, None])))
        model.reset_metrics()
    np.savez(target, outputs=outputs, losses=losses, parameters=model.count_params())


if __name__ == "__main__":
    main(*sys.argv[1:])
