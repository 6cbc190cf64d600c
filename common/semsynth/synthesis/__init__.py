"""Label maps to volumes."""
