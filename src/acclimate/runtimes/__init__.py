"""What an artifact can run on."""
