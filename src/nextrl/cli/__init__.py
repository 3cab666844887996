"""The command line: one file a verb, registered here."""
