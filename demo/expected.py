"""What the dense SmolLM2-135M-Instruct (Q4_1) answers, greedily, to the demo's question.

tests/demo computes it anew in numpy, from the GGUF, without any of kandiga's code. The mixture made
from the dense model must give the same tokens.
"""

QUESTION = "What is gravity?"

# The last one is <|im_end|>.
DENSE_TOKEN_IDS = (
    22007, 6463, 314, 253, 4959, 1909, 281, 6944, 338, 6601, 260, 26589, 282, 42548, 2952, 411, 260,
    4313, 282, 2389, 30, 657, 506, 253, 4959, 2325, 282, 260, 6128, 338, 48165, 260, 2555, 282,
    3401, 335, 2591, 30, 533, 9615, 28, 9354, 314, 260, 3075, 338, 8211, 3401, 429, 9135, 767, 260,
    2591, 506, 2376, 30, 657, 506, 253, 966, 282, 260, 970, 42548, 314, 18955, 411, 6207, 3401, 702,
    5703, 284, 9244, 30, 2,
)  # fmt: skip
