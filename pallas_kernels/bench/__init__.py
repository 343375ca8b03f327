"""Times the kernels on this machine's device against XLA, their peers and a copy."""
