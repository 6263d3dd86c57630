"""A conversation, and the terminal it is held in.

conversation.py  messages, and answers that prefill only what is not yet computed
transcript.py    conversations as files
terminal.py      lines in, answers out; commands.py, what begins with a slash; settings.py, /set
assembly.py      a terminal for what stdin and stdout are
line_input.py    where lines come from: line_editor.py on a terminal, else standard input;
                 key_watcher.py, keys pressed while an answer is written
views.py         how answers are shown: plain_view.py, json_view.py, live_view.py
                 (markdown_lines.py, live_region.py), and status_line.py below them
one_shot.py      one prompt, one answer: `kandiga-run run`
"""

from __future__ import annotations

from kandiga_run.chat.conversation import Conversation, Interrupted

__all__ = ["Conversation", "Interrupted"]
