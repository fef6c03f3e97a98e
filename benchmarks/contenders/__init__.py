"""One file a contender; each runs as a program of its own and follows play.py."""
