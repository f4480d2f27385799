"""Ctrl-C before any line or operation of the package."""

import dis
import sys

RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_GENERATOR")}


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line, or operation, that the package executes.

    Not before a return, where Python does not look for signals. In files of the package alone: the
    runtime type checks of tests are no code of its own, and nine lines of ten are theirs.
    """

    def __init__(self, at=None, *, operations=False, files=".py"):
        self.at, self.operations, self.files = at, operations, files
        self.count, self.place = 0, None

    def __call__(self, frame, event, arg):
        code = frame.f_code
        if "/tsmc_widgets/" not in code.co_filename or not code.co_filename.endswith(self.files):
            return None
        if self.operations:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counts = event == "line" and not self.operations
        if event == "opcode":
            counts = code.co_code[frame.f_lasti] not in RETURNS
        self.count += counts
        if counts and self.count == self.at:
            self.place = f"{code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt
        return self

    def during(self, act):
        """What ``act`` returns, or the interrupt that ended it."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return act()
        except KeyboardInterrupt as error:
            return error
        finally:
            sys.settrace(before)
