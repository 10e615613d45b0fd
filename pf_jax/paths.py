"""Paths that a user gives: of this machine or of an object store, checked before they are used."""

from etils import epath

from pf_jax.errors import UserError


def checked_path(text: epath.PathLike, name: str) -> epath.Path:
    """Returns a path with "~" expanded; of an object store, after asking whether it can be reached.

    Args:
        text: What the user gave, such as "~/runs" or "gs://bucket/runs".
        name: What an error calls it, such as "--workdir".

    Raises:
        UserError: There is no such kind of path, what it needs is not installed, or it cannot be
            reached.
    """
    try:
        path = epath.Path(text).expanduser()
        if is_remote(path):
            path.exists()
    except ImportError as error:
        raise UserError(
            f'{name}={text} needs a package that is not installed: pip install -e ".[gcs]" for '
            f"gs:// ({_brief(error)})."
        ) from error
    except (KeyError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"{name}={text} is no path that can be opened; give a directory or gs://BUCKET/PATH."
        ) from error
    except Exception as error:  # Each store's library has errors of its own.
        raise UserError(f"{name}={text} cannot be reached: {_brief(error)}.") from error
    return path


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is one of an object store."""
    return "://" in str(path)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".")
