"""Measuring an artifact on another machine: the agent that runs on the device, and the desk's side of the wire."""
