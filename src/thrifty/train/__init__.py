"""The main job: `tune`, one training loop with checkpoints that go on where they stopped; `predict`; and `in_context`, which
measures what a model answers without any training; and `zero_shot`, the answers of a model that knows classes by their names."""
from thrifty.train.asking import Asking
from thrifty.train.base_to_new import base_to_new
from thrifty.train.in_context import in_context
from thrifty.train.interrupt import Interrupted
from thrifty.train.predict import predict
from thrifty.train.run import Run
from thrifty.train.settings import Settings
from thrifty.train.tune import tune
from thrifty.train.zero_shot import zero_shot

__all__ = ["Asking", "Interrupted", "Run", "Settings", "base_to_new", "in_context", "predict", "tune", "zero_shot"]
