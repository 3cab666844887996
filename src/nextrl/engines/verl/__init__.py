"""Leaps in place inside verl: a plugin (`plugin`, `trainer`, `worker`), and `engine: verl` of `nextrl run` (`job`)."""
