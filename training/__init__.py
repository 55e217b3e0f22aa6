"""Training and evaluation of candidates for a better embedded model. Nothing here is shipped or imported."""
