"""Text to tokens and back, by the files that stand beside a container.

prompts.py        the door: render, encode, decode; tokens that end an answer
chat_template.py  a checkpoint's own template, in a sandbox
detokenizer.py    tokens to text while they arrive; token_bytes.py, single tokens as bytes
"""
