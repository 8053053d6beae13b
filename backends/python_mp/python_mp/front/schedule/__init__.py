"""What waits, and which of it goes next."""
