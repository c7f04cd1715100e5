"""The main job: `tune`, one training loop with checkpoints that go on where they stopped; and `predict`."""
from thrifty.train.interrupt import Interrupted
from thrifty.train.predict import predict
from thrifty.train.run import Run
from thrifty.train.settings import Settings
from thrifty.train.tune import tune

__all__ = ["Interrupted", "Run", "Settings", "predict", "tune"]
