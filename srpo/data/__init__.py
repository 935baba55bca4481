"""Problems: their schema, their prompts, and the toy set of the quickstart."""
