"""Stand-ins for the responses of a Serve deployment handle."""

import asyncio
from typing import Any

__all__ = ["Response"]


class Response:
    """A deployment response with a given outcome."""

    def __init__(self, outcome: Any) -> None:
        self.is_cancelled = False
        self._outcome = outcome

    def __await__(self) -> Any:
        async def wait() -> Any:
            if self._outcome is None:
                await asyncio.Event().wait()
            if isinstance(self._outcome, BaseException):
                raise self._outcome
            return self._outcome

        return wait().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True
