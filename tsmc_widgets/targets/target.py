"""The target sigma(s) = p0(s | s_0) phi(s) / Z over T tokens."""
