"""Remembered maps of tracked objects, in pages.

A *page* holds one remembered map (tokens, channels), a *shelf* a fixed number of pages in one piece, a *bank* the
shelves of one object. A page is written once, given back when nothing can look at it any more, and taken again, lowest
first: in a live video an object never needs more than its first shelf. Where frames are known and any of them may be
looked at again, a bank grows by whole shelves. Shelves that an object leaves are used by the next one: nothing is
returned to the device.

What one frame looks at is gathered from pages that lie apart: a conditioning frame, the latest ones, an old one that a
correction may still need between them. That copies a few megabytes per object and frame, a thousandth of the time that
attention to them takes.
"""

from __future__ import annotations

import heapq
from typing import Any

from ..device.base import Device
from ..errors import UserError


class Page:
    """One remembered map: `array` (tokens, channels). `number` counts the bank's pages, `place` those of its shelf."""

    __slots__ = ("number", "place", "shelf")

    def __init__(self, shelf: Any, place: int, number: int) -> None:
        self.shelf, self.place, self.number = shelf, place, number

    @property
    def array(self) -> Any:
        return self.shelf[self.place]


class PagePool:
    """Shelves of `pages` pages each, for at most `objects` objects at a time."""

    def __init__(self, device: Device, objects: int, pages: int, tokens: int, channels: int, dtype: str) -> None:
        self._device, self._dtype = device, dtype
        self._shape = (pages, tokens, channels)
        self._free: list[Any] = []
        self.capacity, self.open = objects, 0
        self.shelves = 0

    def shelf(self) -> Any:
        """(pages, tokens, channels), one that was used before if there is one."""
        if self._free:
            return self._free.pop()
        self.shelves += 1
        return self._device.empty(self._shape, self._dtype)

    def rent(self, grows: bool) -> Bank:
        """A bank for a new object. Raises UserError when the engine follows as many as it may."""
        if self.open == self.capacity:
            raise UserError(
                f"all {self.capacity} object rows are in use; remove an object, close a session or load "
                "the engine with a larger max_objects"
            )
        self.open += 1
        return Bank(self, self._shape[0], grows)

    def release(self, shelves: list[Any]) -> None:
        """Called by a bank that closes."""
        self.open -= 1
        self._free.extend(shelves)


class Bank:
    """The pages of one object."""

    def __init__(self, pool: PagePool, pages: int, grows: bool) -> None:
        self._pool, self._pages, self._grows = pool, pages, grows
        self._shelves: list[Any] = []
        self._free: list[int] = []

    def take(self) -> Page:
        """The lowest free page."""
        if not self._free:
            if self._shelves and not self._grows:
                raise AssertionError("a live object needs more pages than its shelf holds")
            first = len(self._shelves) * self._pages
            self._shelves.append(self._pool.shelf())
            self._free = list(range(first, first + self._pages))
        number = heapq.heappop(self._free)
        shelf, place = divmod(number, self._pages)
        return Page(self._shelves[shelf], place, number)

    def give(self, page: Page) -> None:
        """Give a page back; it is overwritten when it is taken again."""
        heapq.heappush(self._free, page.number)

    def close(self) -> None:
        """Give everything back. Closing twice is harmless."""
        if self._pool is not None:
            self._pool.release(self._shelves)
            self._pool, self._shelves, self._free = None, [], []
