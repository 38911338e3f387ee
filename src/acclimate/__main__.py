"""`python -m acclimate`, and what `torchrun -m acclimate` starts."""

from __future__ import annotations

from acclimate.cli import main

main()
