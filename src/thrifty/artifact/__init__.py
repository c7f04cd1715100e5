"""The adapter on disk: safetensors and JSON only, verified whole before anything of it is used."""
from . import peft
from .begin import begin
from .fingerprint import fingerprint
from .load import inspect, load, read, refuse_base
from .save import save

__all__ = ["begin", "fingerprint", "inspect", "load", "peft", "read", "refuse_base", "save"]
