"""Runs a model on one device: precision, packing, the forward pass, CUDA graphs, launches, memory."""
