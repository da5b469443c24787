"""The agent: runs on every compute host, and runs its VMs."""
