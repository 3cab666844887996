"""What trains: one package per trainer (`trl`, `verl`), and beside them what serves both."""
