"""`python -m kandiga_pack` is `kandiga-pack`."""

from kandiga_pack.cli import main

main()
