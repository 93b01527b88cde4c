"""The one kind of error that a user can cause: its message is the sentence the command line prints."""


class UserError(ValueError):
    """Bad input, in one sentence that names what is wrong and what would be right. The command line exits with 2."""
