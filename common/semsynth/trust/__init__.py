"""What is checked of a bundle before anything of it is loaded: hashes, weights, configs, code, sizes, a signature."""
