"""What is open to users: tables of names, and the ways into them. Light: only the standard library."""
