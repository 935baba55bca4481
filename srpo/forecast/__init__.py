"""What the ledger says about the epochs to come, and a simulation that needs no model."""
