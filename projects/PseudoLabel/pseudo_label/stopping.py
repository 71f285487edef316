"""Ends long work in good order when it is asked to."""

import signal
import threading
import time

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While open, SIGTERM and Ctrl-C are noted in ``name``; a second Ctrl-C acts as ever.

    In other threads than the main one signals cannot be caught, and are left as they are.
    """

    def __init__(self):
        self.name = ""
        self._earlier = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._earlier = {x: signal.signal(x, self._note) for x in _SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM, by which schedulers end what is to go on later."""
        return 0 if self.name == "SIGTERM" else 130

    def sleep(self, seconds: float) -> None:
        """As long as nobody asks."""
        end = time.monotonic() + seconds
        while not self and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _note(self, number: int, _) -> None:
        self.name = signal.Signals(number).name
        # a launcher may pass on the SIGTERM that its children got anyway: twice is not urgent
        signal.signal(signal.SIGINT, self._earlier[signal.SIGINT])
