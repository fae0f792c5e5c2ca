"""Reports as pages: one file that needs nothing else, to read in a browser and to print."""
