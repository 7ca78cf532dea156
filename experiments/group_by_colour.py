"""Split the slides `rest` into five groups by colour: group_by_colour.py DATA SLIDES OUT.

The groups stand in for slides: a network that is validated on one has not seen its stain.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from kit.data import open_store, read_slides

GROUPS = 5

data, table, out = (Path(word) for word in sys.argv[1:])
train = open_store(data).train
slides = read_slides(table, train.ids).astype(object)
rest = slides == "rest"
pixels = train.tiles[rest].reshape(rest.sum(), -1, 3)
colours = np.hstack([pixels.mean(1), pixels.std(1)])
groups = KMeans(GROUPS, n_init=10, random_state=0).fit_predict(colours)
slides[rest] = [f"rest-{group}" for group in groups]
pd.DataFrame({"id": train.ids, "slide": slides}).to_csv(out, index=False)
