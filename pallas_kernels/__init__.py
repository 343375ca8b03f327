"""Fused normalization kernels, and the tools that read what the compiler made of them."""
