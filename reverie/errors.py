"""The one kind of error that a user can cause: its message is the sentence the command line prints."""


class UserError(ValueError):
    """Bad input, in one sentence that names what is wrong and what would be right. The command line exits with 2."""


def plain(text: str) -> str:
    """One line of what others may have written, such as a file's notes: nothing in it steers a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class ProcessDied(Exception):
    """One of the processes that train together has died, and training with it; the message says which one."""
