"""Is the artifact as good as the detector it came from, and does it fit the budget? Measured on its own runtime."""
