"""`kandiga-run serve`: OpenAI's and Anthropic's HTTP APIs, and a page, on top of a scheduler.

app.py            the application: routes, and what stands before them
openai            POST /v1/chat/completions, /v1/completions and /v1/responses
anthropic         POST /v1/messages; in both, request and answer types beside each API
models.py         GET /v1/models; status.py, /health and /status; metrics.py, /metrics; page.py, /
answering.py      from what a client wants to requests of the scheduler; forced_calls.py, where
                  a tool must be called
replies.py        answers on their way back, in no API's shape yet
service.py        what the routes share; settings.py, what the command was told;
                  response_memory.py, conversations that are continued by id
serving.py        what every route does; fields.py, types that bodies share; identifiers.py
running.py        the socket, Ctrl-C, the end
sse.py            streams of events; disconnects.py, clients that leave
errors.py         refusals, in each API's shape; limits.py, access.py, request_ids.py,
                  head_requests.py and whole_characters.py, before any route
document.py       the OpenAPI document; responses_documented.py, what a route may return
"""
