"""Model families that a checkpoint alone is enough for."""
