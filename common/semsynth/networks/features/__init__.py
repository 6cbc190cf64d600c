"""Feature networks of metrics and perceptual losses, by name."""
