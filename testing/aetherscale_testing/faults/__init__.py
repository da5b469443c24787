"""Faults, and what must hold after each: views of hosts and broker, what clients were told, and a checker of both."""
