"""How fast it is, measured so that a sceptic can run it: `make bench`, or one by name: `make bench ONLY=list-vms`."""
