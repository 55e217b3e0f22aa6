"""What goes around Ray's processes: their environment, the Serve file, draining a node."""
