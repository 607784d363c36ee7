"""The version, and where the package is; apart, so that nothing below has to import the package's own face."""

from pathlib import Path

__version__ = "0.1.0"
PACKAGE = Path(__file__).parent
