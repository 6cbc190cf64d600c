"""Where weights came from."""
