"""A conversation, and the terminal it is held in.

conversation.py  messages, and answers that prefill only what is not yet computed
transcript.py    conversations as files
terminal.py      lines in, answers out; commands.py, what begins with a slash; settings.py, /set
line_input.py    where lines come from: line_editor.py on a terminal, else standard input
views            how answers are shown: plain_view.py, json_view.py, live_view.py (markdown.py,
                 live_region.py), and status_line.py below them
"""

from __future__ import annotations

from kandiga_run.chat.conversation import Conversation, Interrupted

__all__ = ["Conversation", "Interrupted"]
