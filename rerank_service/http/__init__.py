"""The HTTP layer: bodies, keys, errors and routes. Only `deployment` uses Ray."""
