"""Many requests on one engine.

scheduler.py      the door: submit, status, close; its thread
worker.py         rounds of that thread: prompts in chunks, answers together
running.py        one sequence that has a place
waiting.py        those that have none yet: clients take turns
ticket.py         the client's end; events.py, what it is told; request.py, what it asked
memory_fit.py     how many answers at once, within a memory budget
prefix_cache.py   beginnings of prompts, chosen by kept_prompts.py; disk_pieces.py, those on disk
status.py         figures
"""

from kandiga_run.generation.answer import Token
from kandiga_run.generation.usage import Usage
from kandiga_run.scheduler.events import Event, Failed, Finished, Prefilled, Queued
from kandiga_run.scheduler.kept_prompts import CacheOptions
from kandiga_run.scheduler.request import Closing, QueueFull, Request
from kandiga_run.scheduler.scheduler import Scheduler
from kandiga_run.scheduler.status import Status
from kandiga_run.scheduler.ticket import Ticket

__all__ = [
    "CacheOptions",
    "Closing",
    "Event",
    "Failed",
    "Finished",
    "Prefilled",
    "QueueFull",
    "Queued",
    "Request",
    "Scheduler",
    "Status",
    "Ticket",
    "Token",
    "Usage",
]
