"""The study behind `docs/quality.md`: compares the embedded model with simpler scorers, truncations and windows."""
