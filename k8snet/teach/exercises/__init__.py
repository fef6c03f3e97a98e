"""The exercises of each chapter: tasks, hints, and checks that look at the network."""
