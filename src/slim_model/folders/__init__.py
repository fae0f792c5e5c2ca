"""Folders of transformers: config.json and safetensors in, the same with fewer channels out."""
