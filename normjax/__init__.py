"""Every normalization method of the JAX world as a pure, composable transform."""
