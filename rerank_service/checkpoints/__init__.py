"""Checkpoints: turns the name of a source into a folder on this machine with verified weights.

`resolve` takes a configured source; `pull` fetches from a model hub or an object store into this machine's cache. To
support another source, implement `Origin` (`origin`) and select the implementation in `pull`.
"""
