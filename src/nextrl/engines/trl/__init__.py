"""Leaps in place inside TRL's trainers; what we lean on in TRL is listed and checked in `seam`."""
