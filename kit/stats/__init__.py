"""Scores (AUC, accuracy, log loss, calibration), their intervals, and paired tests.

It knows nothing of files, tiles or PyTorch: arrays go in, numbers come out. Four questions,
four kinds of interval. How well would these weights do on other tiles of the same slides:
`auc_interval`, `delong_test`. On tiles of other slides: `auc_jackknife`, `bootstrap_test`. Does
one recipe beat another on these tiles, however it is seeded: `paired_difference`. On tiles or
slides that were not there: `resampled_difference` and `runs_difference`, `crossed_difference`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
