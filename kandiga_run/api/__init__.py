"""The Python API: load a model, ask it, read the answer. `import kandiga_run` gives these names.

model.py     `load`, LoadedModel, Chat
stream.py    an answer as it comes, and what makes it
settings.py  how to answer
"""

from kandiga_run.api.model import Chat, LoadedModel, load
from kandiga_run.api.settings import Settings
from kandiga_run.api.stream import Stream

__all__ = ["Chat", "LoadedModel", "Settings", "Stream", "load"]
