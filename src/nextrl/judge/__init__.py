"""Whether a leap pays: on the run's own past, on held-out prompts, and by what a window shows for free."""
