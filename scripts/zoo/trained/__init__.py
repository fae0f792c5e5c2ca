"""Architectures of published weights, written from the papers and the shapes of what is stored; one family a module."""
