"""One device: precision, packing, the forward pass, CUDA graphs, launches, memory."""
