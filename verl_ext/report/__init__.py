"""A run or a comparison as one page: HTML that opens from disk, and the same in Markdown."""
