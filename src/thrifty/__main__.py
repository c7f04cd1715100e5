"""``python -m thrifty`` is the command ``thrifty``."""
import sys

from thrifty.cli.main import main

sys.exit(main())
