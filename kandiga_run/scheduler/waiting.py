"""Who is next: clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from kandiga_run.scheduler.ticket import Ticket


class WaitingTickets:
    """First come first served among a client's own, round robin between clients.

    A client with a hundred requests delays another's first one by a single turn. Not thread-safe.
    """

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(own) for own in self._by_client.values())

    def __iter__(self) -> Iterator[Ticket]:
        """Yield the tickets in the order in which their turn comes."""
        turn = 0
        queues = list(self._by_client.values())
        while any(turn < len(own) for own in queues):
            yield from (own[turn] for own in queues if turn < len(own))
            turn += 1

    def add(self, ticket: Ticket) -> None:
        """Put a ticket behind the others of its client."""
        self._by_client.setdefault(ticket.request.client, deque()).append(ticket)

    def first(self) -> Ticket:
        """Return the ticket whose turn it is."""
        return next(iter(self._by_client.values()))[0]

    def take_first(self) -> Ticket:
        """Take it out; its client goes to the end of the line."""
        client, own = self._by_client.popitem(last=False)
        ticket = own.popleft()
        if own:
            self._by_client[client] = own
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket that gave up waiting."""
        client = ticket.request.client
        own = self._by_client[client]
        own.remove(ticket)
        if not own:
            del self._by_client[client]
