"""What `docs/quality.md` shows: the embedded default beside simpler scorers, and what changes its ranking."""
