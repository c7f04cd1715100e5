"""The command line: thin. Each command maps onto one public function."""
from thrifty.cli.main import main

__all__ = ["main"]
