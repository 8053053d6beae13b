"""Chaos for a running server: load and faults together, every answer checked, a table at the end.

ADMIN_TOKEN=... python -m clients.chaos --seconds 60

    run          from the first request to the last line; __main__ and options before it
    questions    what is asked, and what a right answer is
    streams      answers that come in parts; next_token says how long they paused
    load         the clients that ask, and what becomes of each request: journal
    target        what the server says of itself; its processes
    faults       what is done to it: to whom (scene), and for how long it hurts (commit)
    leaks        what it holds before and after
    verdict      which request met which fault, and what must not have happened: report
"""
