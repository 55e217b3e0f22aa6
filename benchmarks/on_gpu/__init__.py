"""Parts of the GPU benchmark: packages to bring, limits, the plan of rows, measurements and the table."""
