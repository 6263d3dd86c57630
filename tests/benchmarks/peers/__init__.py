"""Other programs that run the same model on the same processors, measured beside ours.

gguf_shapes.py       our config -> what a GGUF says about the same model
synthetic_gguf.py    a GGUF of that shape with made-up weights, at our bits per weight
task.py              what is measured, and what one run of a program found
run_ours.py          a process that measures kandiga
run_llama_cpp.py     a process that measures llama.cpp through llama-cpp-python
programs.py          how each program is called and its answer read
rounds.py            the programs in turns, each alone with its own files
table.py             medians and ratios
"""
