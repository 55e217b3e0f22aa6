"""Everything that is not needed to serve."""
