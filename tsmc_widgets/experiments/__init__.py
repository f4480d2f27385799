"""Runs by names and numbers: described in JSON, executed on any executor, stored and compared."""
