"""Archives: finding or fetching them, checking them, and reading what is in them.

Nothing is ever extracted to a disk: members are read in one pass, so a name in an archive can do no
harm, and no half-extracted directory is left behind.
"""

import dataclasses
import gzip
import hashlib
import lzma
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import pooch
from absl import logging
from etils import epath

from pf_jax.errors import UserError

_DAMAGE = (
    *(EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that a dataset is made of.

    Attributes:
        url: Where its publisher offers it.
        filename: What it is called here.
        size: In bytes, where it is known.
        checksum: As "md5:..." or "sha256:...", where it is known.
        aliases: Other names under which people have it.
        note: What its publisher asks for before it can be downloaded.
    """

    url: str
    filename: str
    size: int | None = None
    checksum: str | None = None
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def amount(self) -> str:
        """The size for people, in parentheses, with a space before."""
        if self.size is None:
            return " (of unknown size)"
        for unit, scale in (("GB", 1e9), ("MB", 1e6)):
            if self.size >= scale:
                return f" ({self.size / scale:.1f} {unit})"
        return f" ({self.size / 1e3:.0f} kB)"


def obtain(
    source: Source, places: Sequence[epath.Path], downloads: epath.Path, *, verify: bool = True
) -> epath.Path:
    """Finds a file in one of some places, or downloads it; checks that it is the right one.

    Args:
        source: The file.
        places: Directories to look in first, in this order.
        downloads: The directory that a download is put into; also looked in.
        verify: Whether the checksum must be right, where it is known.

    Returns:
        The path of the file.

    Raises:
        UserError: The file is not to be had, or is another one than expected.
    """
    names = [source.filename, *source.aliases]
    for path in (place / name for place in [*places, downloads] for name in names):
        if path.exists():
            if verify:
                _verify(source, path)
            return path
    where = places[0] if places else downloads
    advice = (
        f"Fetch {source.filename}{source.amount} from {source.url} by other means and put it into "
        f"{where}. {source.note}".rstrip()
    )
    if others := _names_in(where):
        logging.warning("%s has no %s, but %s.", where, source.filename, others)
    logging.warning(
        "Downloading %s%s to %s", source.url, source.amount, downloads / source.filename
    )
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        pooch.get_logger().setLevel("WARNING")
        pooch.retrieve(
            source.url,
            known_hash=None,
            fname=source.filename,
            path=str(downloads),
            downloader=pooch.HTTPDownloader(progressbar=True, headers=_credentials(source)),
        )
    except (OSError, ValueError) as error:  # All of requests' errors are OSErrors.
        reason = " ".join(str(error).split())
        raise UserError(f"Cannot download {source.filename} ({reason}). {advice}") from error
    if verify:
        try:
            _verify(source, downloads / source.filename)
        except UserError:
            (downloads / source.filename).unlink()  # It is of no use to the next attempt.
            raise
    return downloads / source.filename


def _names_in(place: epath.Path) -> str:
    """Some names of files in a directory; empty if there is none."""
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    return ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")


def _credentials(source: Source) -> dict[str, str]:
    """What tells Hugging Face who has agreed to its conditions; `HF_TOKEN` is its own name."""
    token = os.environ.get("HF_TOKEN")
    if not token or not source.url.startswith("https://huggingface.co/"):
        return {}
    return {"Authorization": f"Bearer {token}"}


def read_members(path: epath.Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Reads the files in a tar or zip archive, in its order, in one pass.

    Directories, links, and what file managers leave behind (`__MACOSX`, `.DS_Store`, `._*`) are
    passed over.

    Args:
        path: The archive; a name that ends in `.zip`, or a tar archive of any compression.
        wanted: Whether a member of some name is to be read. Names come without a leading "./".

    Yields:
        The name and the content of each member that is wanted.

    Raises:
        UserError: The archive is damaged or cut short, or a name in it leads out of it.
    """
    try:
        with path.open("rb") as file:
            members = _zip_members if path.name.endswith(".zip") else _tar_members
            for name, read in members(file):
                name = _checked_name(path, name)
                if not _is_litter(name) and wanted(name):
                    yield name, read()
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
        raise UserError(  # What is wrong inside of a file, as bz2 has it, has no errno.
            f"{path} is damaged or cut short ({' '.join(str(error).split())}); "
            "delete it and fetch it again."
        ) from error


def _tar_members(file: BinaryIO) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            if member.isfile():
                yield member.name, lambda member=member: tar.extractfile(member).read()
        while tar.fileobj.read(2**20):
            pass  # To the end, where the checksum of the whole stands.


def _zip_members(file: BinaryIO) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, lambda member=member: archive.read(member)


def _checked_name(path: epath.Path, name: str) -> str:
    """Returns the name without detours; one that leads out of the archive is a sign of malice."""
    normal = posixpath.normpath(name.replace("\\", "/"))
    if normal.startswith(("/", "../")) or normal == ".." or normal[1:3] == ":/":
        raise UserError(
            f"{path} has a member named {name!r}, which leads out of the archive: it is not what "
            "its publisher offers; delete it and fetch it from there."
        )
    return normal


def _is_litter(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1] == ".DS_Store" or parts[-1].startswith("._")


def _verify(source: Source, path: epath.Path) -> None:
    """Compares a file with what is known of it.

    Raises:
        UserError: It is another one.
    """
    advice = (
        f"Delete it and fetch it again from {source.url}{source.amount}, or set "
        "data.verify_checksums=false if you know that it is right."
    )
    try:
        size = path.stat().length
        if source.size is not None and size != source.size:
            raise UserError(
                f"{path} is not the file that was expected: it has {size:,} bytes and not "
                f"{source.size:,}. {advice}"
            )
        if source.checksum is not None:
            algorithm, _, expected = source.checksum.partition(":")
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, algorithm).hexdigest()
            if actual != expected:
                raise UserError(
                    f"{path} is not the file that was expected: its {algorithm.upper()} is "
                    f"{actual} and not {expected}. {advice}"
                )
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
