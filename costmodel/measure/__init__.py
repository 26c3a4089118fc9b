"""Real runs on this machine: seconds and bytes of the same `Step` that is traced."""
