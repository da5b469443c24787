"""The CLI: one command in, one table or one JSON document out. It never imports the agent."""
