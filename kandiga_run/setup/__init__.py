"""From nothing to a model that answers.

target.py   what is to be set up: a preset, an id on the Hub or a folder, and where it goes
choose.py   the largest preset that fits this machine
packer.py   `kandiga-pack` as a process of its own, and how it ended
install.py  downloading or packing, verifying, remembering; each step only if it is still to be done
"""
