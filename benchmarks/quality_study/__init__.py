"""The study behind `docs/quality.md`: the embedded model compared with simpler scorers, truncations and windows."""
