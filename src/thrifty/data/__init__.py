"""Read what users have: tables, image folders, hub sets. Columns, splits and leaks are checked before anything trains."""
from __future__ import annotations

from thrifty.data.dataset import Dataset
from thrifty.data.read import read
from thrifty.data.sampling import few
from thrifty.data.several import Several, is_several, read_several

__all__ = ["Dataset", "Several", "few", "is_several", "read", "read_several"]
