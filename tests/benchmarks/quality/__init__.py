"""How far two ways of computing one model are apart, on a real text.

text.py        the text, which every Python brings along, and its tokens
logits_kl.py   two sets of logits -> KL divergence, top-1 agreement, perplexity
compare.py     the same tokens through several engines, prefill path and decode path
table.py       comparisons as a markdown table
"""
