"""The reader's working copy: made, brought up to date, reset, opened in JupyterLab.

A notebook counts as edited when the source of a cell differs from what was copied;
running it, which changes outputs and counters only, does not count.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from k8snet.errors import InvalidInput, ProgramMissing
from k8snet.jupyter.chapters import find_chapters, package_folder
from k8snet.sandbox import state_folder

__all__ = ["Reset", "default_folder", "lab_command", "reset", "update"]


@dataclass(frozen=True, kw_only=True)
class Reset:
    """What became of a chapter that was reset."""

    chapter: Path
    edited: Path | None  # where the reader's version is kept; None if there was none


def default_folder() -> Path:
    """Return where the working copy is: $K8SNET_WORKDIR, or k8snet-book in the home folder."""
    return Path(os.environ.get("K8SNET_WORKDIR") or Path.home() / "k8snet-book").absolute()


def update(folder: Path, *, source: Path | None = None) -> list[str]:
    """Bring the working copy in *folder* to this version of the book.

    Files that the reader has not edited are replaced; beside an edited one the new
    version is put as NAME.new.ipynb.

    Returns:
        a line for each thing that the reader should know.

    Raises:
        InvalidInput: *folder* is the published book itself, or no folder.
    """
    source, folder = source or package_folder("notebooks"), folder.absolute()
    if folder.exists() and folder.resolve() == source.resolve():
        raise InvalidInput(f"{folder} is the book itself. Choose another folder for the working copy: --dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot make {folder}: {error.strerror}. Choose another folder: --dir") from None
    record = _Record.of(folder)
    lines = [line for path in _published(source) if (line := _update_one(path, source, folder, record))]
    record.save()
    return lines


def reset(chapter: str, folder: Path, *, source: Path | None = None) -> Reset:
    """Restore one chapter of the working copy, keeping the edited one as NAME.edited-N.ipynb.

    Raises:
        NotFound: there is no such chapter; the message lists those there are.
    """
    source = source or package_folder("notebooks")
    name = find_chapters([chapter], source=source)[0].path.name
    original, target = source / name, folder.absolute() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = None
    if target.exists() and _fingerprint(target) != _fingerprint(original):
        kept = _unused_name(target)
        target.rename(kept)
    shutil.copyfile(original, target)
    record = _Record.of(folder.absolute())
    record.note(name, original)
    record.save()
    return Reset(chapter=target, edited=kept)


def lab_command(folder: Path, *, port: int, browser: bool) -> tuple[list[str], dict[str, str]]:
    """Return the argument list and the environment that open *folder* in JupyterLab.

    Args:
        port: a TCP port of 127.0.0.1; if it is taken, the next free one is used.
        browser: open the reader's web browser, too.

    Raises:
        ProgramMissing: Jupyter does not find the kernelspec k8snet.
    """
    from jupyter_client.kernelspec import KernelSpecManager  # slow to import

    # our page settings: JupyterLab does not ask whether it may fetch its own news
    paths = [str(Path(__file__).with_name("config")), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    config = os.pathsep.join(filter(None, paths))
    environment = {**os.environ, "K8SNET_WORKDIR": str(folder), "JUPYTER_CONFIG_PATH": config}
    if "k8snet" not in KernelSpecManager().find_kernel_specs():
        raise ProgramMissing("Jupyter does not find the kernelspec k8snet. Run: k8snet kernelspec install --sys-prefix")
    first = min((path.name for path in folder.glob("[0-9][0-9]-*.ipynb")), default=None)
    settings = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.root_dir": folder,
        "ServerApp.open_browser": browser, "ServerApp.allow_root": True,  # the kernelspec runs as nobody
        "MappingKernelManager.default_kernel_name": "k8snet",
        "LabApp.default_url": f"/lab/tree/{first}" if first else "/lab",
        "Application.log_level": "WARN",  # the address is printed all the same
        # nothing is asked of the network
        "LabApp.news_url": None, "LabApp.extension_manager": "readonly",
        "LabApp.check_for_updates_class": "jupyterlab.handlers.announcements.NeverCheckForUpdate",
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "jupyterlab", *words], environment


# -- what was copied -------------------------------------------------------------------


class _Record:
    """What was copied to a working copy: the sums of each file, kept in the state folder."""

    def __init__(self, path: Path, sums: dict[str, dict[str, str]]) -> None:
        self.path, self.sums = path, sums

    @classmethod
    def of(cls, folder: Path) -> _Record:
        """Read the record of *folder*; one that is missing or damaged counts as empty."""
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        path = state_folder() / "working-copies" / f"{name}.json"
        try:
            sums = json.loads(path.read_text())["sums"]
            return cls(path, {str(key): dict(value) for key, value in sums.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(path, {})

    def note(self, name: str, original: Path) -> None:
        """Remember that *original* is what the file *name* was copied from."""
        self.sums[name] = {"bytes": _sum(original), "content": _fingerprint(original)}

    def save(self) -> None:
        """Write the record, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"sums": self.sums}, indent=1))
        draft.replace(self.path)


def _update_one(original: Path, source: Path, folder: Path, record: _Record) -> str | None:
    name = original.relative_to(source)
    target = folder / name
    known = record.sums.get(str(name), {})
    if target.exists() and known.get("bytes") == _sum(original):
        return None
    record.note(str(name), original)
    content = _fingerprint(target) if target.exists() else None
    if content not in (None, known.get("content"), _fingerprint(original)):
        beside = target.with_name(f"{target.stem}.new{target.suffix}")
        shutil.copyfile(original, beside)
        return f"{name} has edits of yours and was left alone; the new version is {beside.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(original, target)
    return f"{name} was updated" if known and content else None


def _published(source: Path) -> list[Path]:
    return [
        path for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]  # fmt: skip


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fingerprint(path: Path) -> str:
    """Return a sum of what a reader may edit: the cells of a notebook, else all."""
    if path.suffix == ".ipynb":
        try:
            cells = json.loads(path.read_text())["cells"]
            text = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
            return hashlib.sha256(text.encode()).hexdigest()
        except (ValueError, KeyError, TypeError):
            pass  # not a notebook any more: its bytes count
    return _sum(path)


def _unused_name(target: Path) -> Path:
    number = 1
    while (beside := target.with_name(f"{target.stem}.edited-{number}{target.suffix}")).exists():
        number += 1
    return beside
