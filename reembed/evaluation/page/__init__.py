"""The report of a comparison: one model of the page, rendered as HTML and as Markdown."""
