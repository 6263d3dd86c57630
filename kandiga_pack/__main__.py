"""`python -m kandiga_pack` is `kandiga-pack`."""

from kandiga_start import pack

pack()
