"""raybench: which machine-unlearning method forgets best, at what cost, on my data and my model?"""

from __future__ import annotations

__version__ = "0.1.0"
