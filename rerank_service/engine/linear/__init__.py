"""Linear layers, by processor and precision."""
