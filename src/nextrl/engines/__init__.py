"""What trains: one package per trainer, and what they share."""
