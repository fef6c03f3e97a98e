"""From what the kernel holds to values, and from values to pictures."""
