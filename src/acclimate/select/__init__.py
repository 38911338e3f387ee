"""Choosing without labels."""
