"""What a sequence leaves behind in each layer: keys and values, or a recurrent state.

A cache of attention has four verbs: append, attend, trim, nbytes. A compressed cache is one more
class with the same four.
"""
