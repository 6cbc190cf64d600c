"""Whether synthetic volumes show scans of the patients that a generator was trained on: the audit, and its parts."""
