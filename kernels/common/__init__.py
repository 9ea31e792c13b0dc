"""What the kernels of every structure are made of, and the operations that know no structure."""
