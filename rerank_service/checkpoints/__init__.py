"""Checkpoints: turns the name of a source into a folder on this machine with verified weights.

`resolve` takes a configured source; `pull` fetches from a model hub or an object store into this machine's cache.
Another place to download from implements `Origin` (`origin`) and is chosen in `pull`.
"""
