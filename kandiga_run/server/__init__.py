"""`kandiga-run serve`: OpenAI's and Anthropic's HTTP APIs, and a page, on top of a scheduler.

app.py            the application: routes, and what stands before them
openai_chat.py    POST /v1/chat/completions; openai_completions.py, openai_responses.py and
                  anthropic_messages.py, the others; each has its request and answer types beside it
models.py         GET /v1/models; status.py, /health, /status and /metrics; page.py, /
answering.py      from what a client wants to requests of the scheduler
replies.py        answers on their way back, in no API's shape yet
service.py        what the routes share; settings.py, what the command was told
sse.py            streams of events; disconnects.py, clients that leave
errors.py         refusals, in each API's shape; limits.py and access.py, before any route
"""
