"""Calls that wait to be let through, so that a test decides when each ends."""

import threading

SECONDS = 60


class Gate:
    """Each call of a function waits for a permit (``open``), and says that it has begun."""

    def __init__(self, monkeypatch, owner, name):
        self.started, self.open = threading.Semaphore(0), threading.Semaphore(0)
        true = getattr(owner, name)

        def gated(*given):
            self.started.release()
            assert self.open.acquire(timeout=SECONDS)
            return true(*given)

        monkeypatch.setattr(owner, name, gated)

    def has_begun(self):
        """Wait for the next call to begin."""
        return self.started.acquire(timeout=SECONDS)
