"""What several test suites share. Never installed with the product."""
