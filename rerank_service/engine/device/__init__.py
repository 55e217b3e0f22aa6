"""Memory, streams, graphs and the forward pass of one device."""
