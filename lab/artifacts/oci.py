# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images for containers, made of files without an engine: layers and an OCI archive.

The same entries give the same bytes: paths are in order, times are zero, owners are numbers. Standard library only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# A binary shrinks by another two percent at level 9, for four times the time.
LEVEL = 6
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 1024 * 1024


class ImageError(Exception):
    """An image is not described right; the text begins with its name."""


@dataclass(frozen=True)
class Entry:
    """One path of a layer; a directory unless it has content or a target.

    Attributes:
        path: absolute path in the image.
        mode: permissions.
        content: opens the file's content.
        size: of the content, in bytes.
        target: where a symbolic link points.
        uid: owner.
        gid: group.
    """

    path: str
    mode: int = 0o755
    content: Callable[[], IO[bytes]] | None = None
    size: int = 0
    target: str = ""
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Layer:
    """One packed layer.

    Attributes:
        blob: the file.
        digest: SHA-256 of the file, hexadecimal.
        diff_id: SHA-256 of the archive in it.
        size: of the file, in bytes.
    """

    blob: Path
    digest: str
    diff_id: str
    size: int


@dataclass(frozen=True)
class Image:
    """One image as `images.yml` describes it.

    Attributes:
        name: last part of its repository.
        tag: its tag; `{version}` is the version of the product.
        product: whose version the tag has, and whose tools it may hold.
        packages: Debian packages of the layer below its own, which come with all that they depend on.
        package_files: Debian package to those of its files that are taken, without what the package depends on.
        files: path in the image to the name of a tool or of another content of the product.
        links: path in the image to where it points.
        entrypoint: what runs.
        command: its arguments, which a pod replaces.
        user: number of the user that it runs as, and of the group after a colon.
        env: environment.
    """

    name: str
    tag: str
    user: str
    product: str = ""
    packages: tuple[str, ...] = ()
    package_files: tuple[tuple[str, tuple[str, ...]], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


_KINDS = {
    "command": list,
    "entrypoint": list,
    "env": dict,
    "files": dict,
    "links": dict,
    "package_files": dict,
    "packages": list,
    "product": str,
    "tag": str,
    "user": str,
}


def parse_images(raw: object) -> list[Image]:
    """Read the images of `images.yml`.

    Raises:
        ImageError: a key is unknown or of another kind, or one that is needed lacks.
    """
    if not isinstance(raw, dict):
        raise ImageError("images: is not a dictionary")
    images = [_parse_image(str(name), described) for name, described in sorted(raw.items())]
    for image in images:
        _check(image)
    return images


def _parse_image(name: str, raw: object) -> Image:
    if not isinstance(raw, dict):
        raise ImageError(f"{name}: is not a dictionary")
    if unknown := sorted(set(raw) - set(_KINDS)):
        raise ImageError(f"{name}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(_KINDS))}")
    for key in ("tag", "user"):
        if not raw.get(key):
            raise ImageError(f"{name}: has no {key}")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if not isinstance(value, _KINDS[key]):
            raise ImageError(f"{name}: {key} must be a {_KINDS[key].__name__}")
        values[key] = _frozen(value)
    return Image(name=name, **values)


def _frozen(value: object) -> object:
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value


def _check(image: Image) -> None:
    if "{version}" in image.tag and not image.product:
        raise ImageError(f"{image.name}: its tag is the version of a product, and it names none")
    if image.files and not image.product:
        raise ImageError(f"{image.name}: its files are a product's, and it names none")
    if image.package_files and not image.packages:
        raise ImageError(f"{image.name}: takes files of packages and has no packages to put them on")
    for path, _ in (*image.files, *image.links):
        if path != posixpath.normpath(path) or not path.startswith("/"):
            raise ImageError(f"{image.name}: {path} is no plain absolute path")


def accounts() -> list[Entry]:
    """What every image has: names for the users that pods run as, and a directory for scratch files."""
    users = {"root": (0, "/root"), "nonroot": (65532, "/home/nonroot"), "nobody": (65534, "/nonexistent")}
    passwd = "".join(f"{name}:x:{uid}:{uid}:{name}:{home}:/sbin/nologin\n" for name, (uid, home) in users.items())
    group = "".join(f"{name}:x:{uid}:\n" for name, (uid, _) in users.items())
    return [text_entry("/etc/passwd", passwd), text_entry("/etc/group", group), Entry("/tmp", 0o1777)]  # noqa: S108


def text_entry(path: str, text: str) -> Entry:
    """A small file."""
    content = text.encode()
    return Entry(path, 0o644, lambda: io.BytesIO(content), len(content))


def file_entries(path: str, source: Path) -> Iterator[Entry]:
    """A program, or a directory of data, as entries. Modes are ours, since caches keep others."""
    if source.is_dir():
        yield Entry(path)
        for child in sorted(source.iterdir()):
            yield from _data_entries(f"{path}/{child.name}", child)
    else:
        yield Entry(path, 0o755, lambda: source.open("rb"), source.stat().st_size)


def _data_entries(path: str, source: Path) -> Iterator[Entry]:
    if source.is_dir():
        yield from file_entries(path, source)
    else:
        yield Entry(path, 0o644, lambda: source.open("rb"), source.stat().st_size)


class _Digesting(io.RawIOBase):
    """Passes bytes on and keeps their SHA-256 and their count."""

    def __init__(self, out: IO[bytes] | gzip.GzipFile) -> None:
        self._out = out
        self.hash = hashlib.sha256()
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.count += len(data)
        return self._out.write(data)


def write_layer(entries: Iterable[Entry], blob: Path) -> Layer:
    """Pack a layer. Directories above an entry are made when no entry is for them; of two for one path, the last is it.

    Raises:
        OSError: content cannot be read, or the file not be written.
    """
    ordered = {entry.path: entry for entry in entries}
    for path in list(ordered):
        for parent in _parents(path):
            ordered.setdefault(parent, Entry(parent))
    with blob.open("wb") as out:
        packed = _Digesting(out)
        with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=packed, mtime=0) as stream:
            plain = _Digesting(stream)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as archive:
                for _, entry in sorted(ordered.items()):
                    _add(archive, entry)
    return Layer(blob, packed.hash.hexdigest(), plain.hash.hexdigest(), packed.count)


def _parents(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/":
        yield path


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path.lstrip("/"))
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, 0
    if entry.target:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
    else:
        info.size = entry.size
        with entry.content() as stream:
            archive.addfile(info, stream)
        return
    archive.addfile(info)


def config_of(image: Image, layers: Sequence[Layer], architecture: str) -> dict[str, Any]:
    """The image's configuration."""
    run: dict[str, Any] = {
        "User": image.user,
        "Env": [f"{name}={value}" for name, value in {"PATH": SEARCH_PATH, **dict(image.env)}.items()],
        "Entrypoint": list(image.entrypoint),
        "Cmd": list(image.command),
        "WorkingDir": "/",
    }
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
    }


def write_archive(path: Path, config: Mapping[str, Any], layers: Sequence[Layer], repository: str, tag: str) -> str:
    """Write an OCI archive; return the digest of its manifest.

    Args:
        path: the archive.
        config: see `config_of`.
        layers: the lowest first.
        repository: where the image is to be, for the engines that read a name from the archive.
        tag: its tag.
    """
    config_bytes = _json(config)
    manifest_bytes = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(CONFIG, config_bytes),
            "layers": [
                {"mediaType": LAYER, "digest": f"sha256:{layer.digest}", "size": layer.size} for layer in layers
            ],
        }
    )
    named = {
        **_descriptor(MANIFEST, manifest_bytes),
        "annotations": {
            "io.containerd.image.name": f"{repository}:{tag}",
            "org.opencontainers.image.ref.name": tag,
        },
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}
    small = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        _blob_path(manifest_bytes): manifest_bytes,
        _blob_path(config_bytes): config_bytes,
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in small.items():
            _add(archive, Entry(name, 0o644, lambda content=content: io.BytesIO(content), len(content)))  # type: ignore[misc]
        for layer in {layer.digest: layer for layer in layers}.values():
            name = f"blobs/sha256/{layer.digest}"
            _add(archive, Entry(name, 0o644, lambda layer=layer: layer.blob.open("rb"), layer.size))  # type: ignore[misc]
    return f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _blob_path(content: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
