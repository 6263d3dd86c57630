"""An opened container, for as long as a model runs from it.

model.py        config, dense tensors, where experts lie
dense_watch.py  dense weights are what was written, or no answer is given
file_guard.py   files that change, or cannot be read, under a running model
"""

from kandiga_run.container.model import Model

__all__ = ["Model"]
