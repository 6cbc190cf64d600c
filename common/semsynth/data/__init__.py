"""What a case is: its files, its checks, its place in a datalist."""
