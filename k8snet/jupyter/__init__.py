"""What Jupyter needs: kernelspecs, cell magics, the runner and the book."""
