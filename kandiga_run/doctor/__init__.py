"""`kandiga-run doctor`: what this machine is, what will be used of it and why, and what is broken.

finding.py   one line of the diagnosis
machine.py   processor, kernels, memory, huge pages
storage.py   folders, free space, reads past the page cache, disk speed
program.py   version, installer, engines
model.py     the default model, and how it would be run
"""
