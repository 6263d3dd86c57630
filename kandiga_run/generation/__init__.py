"""Tokens out of an engine, one answer at a time. Knows nothing of what their text means.

loop.py            prefill, then token by token
answer.py          one answer in the making: its tokens, their text, its end
options.py         what may be asked of an answer; model_defaults.py, what its model recommends
sampling.py        from logits to a token
stop_strings.py    an end that is text
kept_state.py      a state kept between answers; usage.py, how many tokens an answer took
"""
