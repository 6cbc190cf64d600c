"""From noise to a volume: samplers, guidance, tiles."""
