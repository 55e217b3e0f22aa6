"""The four kinds of model, one engine each."""
