"""The ways to train a model for an epoch: Keras's own fit, and the compiled step."""
