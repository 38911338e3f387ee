"""Domain-adaptive object detection for edge devices: labelled source, unlabelled target folder, verified artifact."""

from __future__ import annotations

__version__ = "0.1.0"
