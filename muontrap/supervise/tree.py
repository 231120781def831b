"""The thread of a tree, and how other threads have something done in it."""

from __future__ import annotations

import os
import threading
import weakref

from muontrap.supervise.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from muontrap.supervise.events import Events

    T = TypeVar("T")


class NotRunning(ValueError):
    """The tree has ended: there is nobody to ask."""


class Answer:
    """What one thread waits for, and another gives."""

    def __init__(self) -> None:
        self._has_come = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def give(self, value: object = None) -> None:
        """Let the one who waits have it."""
        self._value = value
        self._has_come.set()

    def work(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        """Give what a function returns or raises."""
        try:
            value = function(*arguments)
        except BaseException as error:
            self._error = error
            value = None
        self.give(value)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it was given; False if that takes longer."""
        return self._has_come.wait(seconds)

    def result(self) -> Any:
        """Wait for it; return it, or raise what the function has raised."""
        self.wait()
        error, self._error = self._error, None
        try:
            if error:
                raise error
        finally:
            del error  # which has this frame in its traceback
        return self._value


class Tree:
    """The thread of a root and of all below it.

    Args:
        name: of the root.
        begin: called with this tree, in its thread, before all else.

    Attributes:
        loop: what runs in the thread.
        listeners: told of all events.
        at_end: called when the root has ended.
        ended: set when nothing is left.
        failure, story: what the root's end was.
    """

    def __init__(self, name: str, begin: Callable[[Tree], object]) -> None:
        self.loop: Loop = Loop()
        self.listeners: weakref.WeakSet[Events] = weakref.WeakSet()
        self.at_end: list[Callable[[], object]] = []
        self.ended: threading.Event = threading.Event()
        self.failure: str = ""
        self.story: list[str] = []
        self._name = name
        self._pid = os.getpid()
        self._has_ended = False
        self.thread: threading.Thread = threading.Thread(
            target=self._serve, name=f"muontrap-{name}", daemon=True
        )
        self.loop.soon(begin, self)
        try:
            self.thread.start()
        except RuntimeError:
            self.loop.close()
            raise

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self.ended.is_set()

    @property
    def is_here(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self.thread

    def check_here(self) -> None:
        """Raise if this is a forked child's copy."""
        if os.getpid() != self._pid:
            raise ValueError(f"{self._name!r} belongs to the process that this one was forked from")

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call in the tree's thread, and return what that returns.

        Raises:
            NotRunning: it has ended.
        """
        self.check_here()
        if self.is_here:
            return function(*arguments)
        answer = Answer()
        if not self.loop.from_thread(answer.work, function, arguments):
            raise NotRunning(f"{self._name!r} is not running")
        value: T = answer.result()
        return value

    def listen(self, listener: Events) -> None:
        """Tell one more of what happens."""
        self.listeners.add(listener)
        if self._has_ended:
            listener.put(None)

    def end(self, failure: str, story: list[str]) -> None:
        """The root has ended."""
        self._has_ended = True
        self.failure, self.story = failure, story
        for listener in self.listeners:
            listener.put(None)
        self.loop.stop()

    def join(self) -> None:
        """Wait for the thread, unless this is it."""
        if not self.is_here:
            self.thread.join()

    def _serve(self) -> None:
        try:
            self.loop.run()
            self.loop.refuse()
            for each in self.at_end:
                each()
        finally:
            self.ended.set()
            self.loop.close()
