"""The HTTP side: bodies, keys, errors and routes. Only `deployment` knows Ray."""
