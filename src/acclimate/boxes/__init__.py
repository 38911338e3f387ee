"""Arithmetic on boxes, xyxy pixels: in numpy for the device, and its twins on tensors in `tensors`."""
