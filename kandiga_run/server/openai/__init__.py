"""The three text APIs of OpenAI.

chat.py         POST /v1/chat/completions: chat_request.py in, chat_answer.py out;
                chat_messages.py, messages as chat templates read them
completions.py  POST /v1/completions; completions_request.py, its body and its answer
responses.py    POST /v1/responses: responses_request.py in, responses_answer.py out;
                responses_items.py, items as messages; responses_writer.py, answers as items
logprobs.py     log probabilities, as all of them carry them
"""
