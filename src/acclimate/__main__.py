"""`python -m acclimate`, and what `torchrun -m acclimate` starts."""

from __future__ import annotations

import sys

from acclimate.cli import main

sys.exit(main())
