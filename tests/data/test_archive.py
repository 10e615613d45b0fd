import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile

import pytest
from etils import epath

from pf_jax.data import archive
from pf_jax.data.archive import Source, obtain, read_members
from pf_jax.errors import UserError

CONTENT = b"The content of an archive."


def source(url="http://localhost:1/a/file.bin", **known):
    return Source(url, "file.bin", **known)


CHECKSUMS = [f"{name}:{hashlib.new(name, CONTENT).hexdigest()}" for name in ("md5", "sha256")]


@pytest.fixture
def places(tmp_path):
    """Two manual folders and one for downloads; only the first exists."""
    (tmp_path / "manual").mkdir()
    return [epath.Path(tmp_path / name) for name in ("manual", "tfds", "downloads")]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("checksum", [None, *CHECKSUMS])
def test_a_file_that_is_there_is_taken_without_a_network(places, place, checksum, monkeypatch):
    monkeypatch.delattr(archive.pooch, "retrieve")
    places[place].mkdir(exist_ok=True)
    path = places[place] / "file.bin"
    path.write_bytes(CONTENT)
    wanted = source(size=len(CONTENT), checksum=checksum)
    assert obtain(wanted, places[:2], places[2]) == path


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"size": 2_500_000_000}, r"has 26 bytes and not 2,500,000,000\. Delete it .* \(2\.5 GB\)"),
        ({"checksum": "md5:" + "0" * 32}, "its MD5 is [0-9a-f]{32} and not 0{32}"),
        ({"checksum": "sha256:" + "0" * 64}, "its SHA256 is [0-9a-f]{64} and not 0{64}"),
    ],
)
def test_another_file_of_the_same_name_is_refused_and_kept(places, known, message):
    path = places[0] / "file.bin"
    path.write_bytes(CONTENT)
    with pytest.raises(UserError, match=message) as raised:
        obtain(source(**known), places[:2], places[2])
    assert str(path) in str(raised.value)
    assert "http://localhost:1/a/file.bin" in str(raised.value)
    assert path.exists(), "it is the user's"
    assert obtain(source(**known), places[:2], places[2], verify=False) == path


@pytest.fixture
def server(tmp_path):
    """The address of a web server that offers file.bin and no more."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file.bin").write_bytes(CONTENT)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://localhost:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_download_is_checked_and_made_once(places, server, monkeypatch):
    wanted = source(f"{server}/file.bin", size=len(CONTENT), checksum=CHECKSUMS[0])
    path = obtain(wanted, places[:2], places[2])
    assert path == places[2] / "file.bin"
    assert path.read_bytes() == CONTENT
    assert os.listdir(places[2]) == ["file.bin"]
    monkeypatch.delattr(archive.pooch, "retrieve")
    assert obtain(wanted, places[:2], places[2]) == path


def test_a_download_of_something_else_is_thrown_away(places, server):
    wanted = source(f"{server}/file.bin", checksum="md5:" + "0" * 32)
    with pytest.raises(UserError, match="its MD5 is"):
        obtain(wanted, places[:2], places[2])
    assert os.listdir(places[2]) == []


@pytest.mark.parametrize("url", ["{server}/nothing.bin", "http://localhost:1/file.bin"])
def test_a_failed_download_says_what_to_do(places, server, url):
    wanted = source(url.format(server=server), size=11_100_000_000)
    with pytest.raises(UserError) as raised:
        obtain(wanted, places[:2], places[2])
    message = str(raised.value)
    assert "\n" not in message
    for part in ("file.bin (11.1 GB)", f"from {wanted.url}", f"put it into {places[0]}."):
        assert part in message
    assert os.listdir(places[2]) == []


MEMBERS = {"a/b.txt": b"one", "c.txt": b"", "a/d.bin": bytes(range(256)) * 300}
LITTER = ("__MACOSX/a/b.txt", "a/._b.txt", ".DS_Store", "a/.DS_Store")


def make(path, members, prefix=""):
    """Writes an archive with directories and what file managers leave behind."""
    members = dict.fromkeys(LITTER, b"litter") | members
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.mkdir("a")
            for name, content in members.items():
                zipped.writestr(prefix + name, content)
        return path
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as tar:
        directory = tarfile.TarInfo(f"{prefix}a")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "../../../etc/passwd"
            tar.addfile(link)
        for name, content in members.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


KINDS = ["x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_members_are_read_in_order(tmp_path, kind, prefix):
    path = epath.Path(make(tmp_path / kind, MEMBERS, prefix))
    assert list(read_members(path, lambda name: True)) == list(MEMBERS.items())
    assert list(read_members(path, lambda name: name == "a/d.bin")) == [
        ("a/d.bin", MEMBERS["a/d.bin"])
    ]
    assert os.listdir(tmp_path) == [kind], "nothing is extracted"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "a\\..\\..\\b"])
def test_a_name_that_leads_out_of_an_archive_is_refused(tmp_path, kind, name):
    path = epath.Path(make(tmp_path / kind, MEMBERS | {name: b"evil"}))
    with pytest.raises(UserError, match="leads out of the archive") as raised:
        list(read_members(path, lambda name: name == "c.txt"))
    assert str(path) in str(raised.value)
    assert os.listdir(tmp_path) == [kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_an_archive_that_was_cut_short_is_noticed(tmp_path, kind, share):
    path = make(tmp_path / kind, MEMBERS | {"noise.bin": os.urandom(100_000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"is damaged or cut short \(.*\); delete it and fetch"):
        list(read_members(epath.Path(path), lambda name: True))


@pytest.mark.parametrize("size", [100_000, 1_500_000])  # The latter has more than one block.
@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_a_flipped_bit_is_noticed(tmp_path, kind, size):
    path = make(tmp_path / kind, {"noise.bin": os.urandom(size)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        list(read_members(epath.Path(path), lambda name: True))
