"""What the watcher says over HTTP."""
