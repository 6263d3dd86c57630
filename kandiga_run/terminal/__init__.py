"""What every command shares with its shell. Imports nothing heavy.

output.py          stdout and stderr; standard_input.py, what is piped in
failures.py        an exception as one line; exit_codes.py
interrupt.py       Ctrl-C while an answer is computed
"""
