"""`kandiga-run bench`: how fast a model runs here, and how close that is to the machine's limits.

Every measurement runs in a process of its own, with nothing else in its memory and, when a cap is
asked for, inside a control group. The process that was started measures the machine's ceilings,
hands out the work and adds up.

page_cache.py    dropping a container from the page cache, filling it, and seeing what is there
memory_group.py  the control group of a capped measurement
request.py       what a measuring process is asked to do
child.py         that process; measure.py, measuring.py and depth.py are what it does
subject.py       the model that is measured, and the tokens it is given
process.py       starting it, and hearing what it says
samples.py       single measurements, and several of the same thing
bounds.py        how fast a measurement could have been
session.py       all measurements of one call
foretold.py      what `kandiga-run plan` says of the same
report.py table.py plot.py   the same results as JSON, for people, as a picture
"""
