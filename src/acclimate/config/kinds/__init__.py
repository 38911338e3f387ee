"""Options that one kind of detector alone has, a file each; none of them needs torch."""
