"""The training loop and the adaptation methods, each a term."""
