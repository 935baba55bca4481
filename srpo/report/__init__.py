"""`srpo report`: one HTML page that compares runs, from what they left in their folders; needs no network to read."""
