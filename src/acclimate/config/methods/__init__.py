"""Options of the methods of adaptation, a file each; none of them needs torch."""
