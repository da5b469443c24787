"""A fleet of real systemd hosts on one machine, for demos, Molecule and fault tests."""
