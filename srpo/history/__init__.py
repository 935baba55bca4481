"""`srpo history`: what the ledger knows of a run's prompts, as tables on the console or in files. Only reads."""
