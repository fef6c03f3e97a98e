"""Services: what it takes to program them, and what each of them costs the first packet of a connection."""
