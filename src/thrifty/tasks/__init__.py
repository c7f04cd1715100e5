"""Rows to batches to loss to predictions to metrics: one file per task."""
from thrifty.tasks.getting import get, names
from thrifty.tasks.task import Task

__all__ = ["Task", "get", "names"]
