"""Raw cases to label maps and images that every bundle trains on."""
