"""Tools for deploying the service: the environment of Ray's processes, the Serve configuration, draining a node."""
