"""How well, and how sure: metrics, intervals, paired comparisons, calibration and linear baselines, in numpy.

A metric that can be resampled takes ``counts`` [R, n], how often each item was drawn in each of R resamples, and then gives
one value per resample, [R]; without, it gives one number.
"""
from thrifty.evaluate.calibration import calibration_bins, expected_calibration_error
from thrifty.evaluate.classification import accuracy, brier, macro_f1, matthews, negative_log_likelihood
from thrifty.evaluate.comparing import Comparison, compare
from thrifty.evaluate.entities import entity_f1, find_entities
from thrifty.evaluate.intervals import bootstrap, mean_interval, wilson
from thrifty.evaluate.linear import linear_head, ridge_head
from thrifty.evaluate.regression import mae, mse, pearson, spearman

__all__ = ["Comparison", "accuracy", "bootstrap", "brier", "calibration_bins", "compare", "entity_f1",
           "expected_calibration_error", "find_entities", "linear_head", "macro_f1", "mae", "matthews", "mean_interval", "mse",
           "negative_log_likelihood", "pearson", "ridge_head", "spearman", "wilson"]
