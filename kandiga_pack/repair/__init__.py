"""Put back the bytes that a container has lost, in place, and nothing else.

`anchor` asks whether kexp.json can be believed. `damage` finds what is wrong. `heads` rebuilds
what the rest of the set tells. An `origin` gives right bytes, `from_copy` of the container or
`from_checkpoint`, each on this machine or on the Hub; `open_origin` finds out which. `rewrite`
writes. `repair` leads: nothing is written whose digest is not the recorded one, so a wrong source
can do no harm.
"""

from kandiga_pack.repair.repair import RepairSummary, repair

__all__ = ["RepairSummary", "repair"]
