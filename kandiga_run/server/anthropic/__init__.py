"""Anthropic's API.

messages.py    POST /v1/messages and /v1/messages/count_tokens: request.py in, answer.py out
conversion.py  messages as chat templates read them
"""
