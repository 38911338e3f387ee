"""Data sets and views: formats, loading, augmentation, weather, generated scenes."""
