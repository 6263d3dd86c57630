"""Put back the bytes that a container has lost, in place, and nothing else.

`anchor` asks whether kexp.json can be believed. `damage` finds what is wrong. `heads` rebuilds
what the rest of the set tells. `origins` gives right bytes: another copy of the container, or the
checkpoint it was made from, each on this machine or on the Hub. `rewrite` writes. `repair` leads:
nothing is written whose digest is not the recorded one, so a wrong source can do no harm.
"""

from kandiga_pack.repair.repair import RepairSummary, repair

__all__ = ["RepairSummary", "repair"]
