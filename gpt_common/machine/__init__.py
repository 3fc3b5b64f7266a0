"""Which machine is this: hardware, published peaks, power, and the BLAS that MLX finds on Linux."""
