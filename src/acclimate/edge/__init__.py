"""What runs on the device: numpy, OpenCV and a runtime; never torch."""
