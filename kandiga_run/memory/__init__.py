"""Memory of this process, in bytes.

use.py     what the kernel charges it, and what is left to take
budget.py  what a budget leaves to the experts
items.py   what it is used for, as an engine knows it
"""
