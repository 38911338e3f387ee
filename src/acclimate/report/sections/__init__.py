"""Parts of the page, a file each: a function takes what the page has and returns what the template of the same name
draws, or None where there is nothing to draw."""
