"""Labellers: what labels images that nobody has labelled, so that a small detector can learn from it.

A labeller is asked for one image after the other, and answers with detections in the pixels of the image. There are
those that are acclimate runs (`run.py`), those that know no classes but words (`zero_shot.py`), and files of others.
"""
