"""`kandiga-run tune`: the fastest residency settings of a model on this machine, measured and kept.

settings.py   what is tuned: residency, memory, readers, threads
trial.py      one choice of settings measured in a process of its own
search.py     which settings are tried, in which order, within a time
outcome.py    all trials of a search, and what they mean
keeping.py    the file that tuned settings are kept in
applying.py   what `run`, `chat`, `bench` and `serve` take from that file
summary.py    an outcome as a table and as JSON
"""
