"""Errors that are reported as one sentence, without a traceback; and the one warning about a model."""

UNTRAINED = (
    "this model's fast-weight layers were never trained, so nothing that they keep of a text reaches what it says"
)


class UserError(ValueError):
    """A mistake in what the user gave; the message is one sentence: what is wrong, and what would be right.

    Commands print it and exit with 2.
    """


def not_this_version(path: object, version: object, known: int) -> UserError:
    """The error of a file whose format has another version than the newest that this program knows."""
    if type(version) is int and version > known:
        return UserError(
            f"{path} was written by a newer reverie, in version {version} of the format: this one reads up to {known}"
        )
    return UserError(f"{path} has a version that no reverie writes, {version!r:.40}: it is damaged, or another's")


def plain(text: str) -> str:
    """`text` with U+FFFD for all that is not printable, line breaks too.

    For what others may have written, such as the notes of a file: control characters could steer a terminal.
    """
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def visible(text: str) -> str:
    """`plain`, but for line breaks and tabs, which stay."""
    return "".join(char if char in "\n\t" else plain(char) for char in text)


class UntrainedWarning(UserWarning):
    """Of a model whose memory cannot matter (`model_remembers`); commands say it by themselves."""


class OldFileWarning(UserWarning):
    """Of a file from before its format had a checksum, so that damage to it may go unnoticed; commands print it."""


class ProcessDied(Exception):
    """One of the processes of a distributed training has died, which ends the training; the message names its rank."""
