"""NetworkPolicy: who may talk to whom, as a truth table, in words, and as rules on every node."""
