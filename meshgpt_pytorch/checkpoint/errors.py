"""The error of everything that is wrong with a file of weights."""


class CheckpointError(ValueError):
    """A file of weights that cannot be read, or does not fit the model."""
