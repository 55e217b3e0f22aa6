"""The HTTP side: bodies, keys, errors and routes. `deployment` is its only tie to Ray."""
