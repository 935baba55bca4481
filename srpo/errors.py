"""The one exception a user is meant to read: one line that names what is wrong, where, and what to do."""


class UserError(Exception):
    """Bad input or an impossible request. The command line prints its message without a traceback and exits 2."""
