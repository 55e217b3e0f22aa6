"""The study behind `docs/appendix/cascades.md`: what a cascade costs, and what it loses, by the passages it keeps."""
