"""Reports as Markdown: a summary for the page of a CI job, and a model card."""
