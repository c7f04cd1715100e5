"""HF PEFT's adapter folders: read onto a model, and written from an attachment, with equal outputs or not at all.

The format is adapter_config.json beside adapter_model.safetensors; the package peft is not needed. What one side can say
and the other cannot is refused by name.
"""
from .reading import read
from .refusal import CannotExpress
from .writing import write

__all__ = ["CannotExpress", "read", "write"]
