"""What the text of an answer means: reasoning, content, calls of tools; and its figures.

parts.py        text taken apart while it arrives, by reasoning.py and tool_calls.py;
                marked_text.py, how both find their markers
reply.py        an answer while it arrives; completion.py, one that is finished
constraint.py   which tokens keep an answer within a JSON schema, a pattern or a grammar
report.py       the figures of an answer, as JSON and as rows
"""
