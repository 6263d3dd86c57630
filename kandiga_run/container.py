"""An opened container as a model: config, dense tensors, where its experts lie."""

from __future__ import annotations


class Model:
    """A container opened for running."""
