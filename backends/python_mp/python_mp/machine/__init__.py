"""What processes ask of the system: threads, limits of the cgroup, states of processes."""
