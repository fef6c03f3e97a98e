"""What a guest boots: a distribution's kernel, the modules that labs use, and an initramfs.

Taken from this machine's own /boot and /lib/modules where these can be read and have all of it,
else from the distribution's packages, downloaded and unpacked but not installed. Kept in the
state folder, one folder a kernel version, complete or not there.
"""
from __future__ import annotations

import fcntl
import fnmatch
import functools
import json
import lzma
import platform
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from k8snet.errors import CapabilityMissing, CommandFailed
from k8snet.linux import run as programs
from k8snet.sandbox import state_folder

__all__ = ["Image", "clean", "find", "folder", "kernel_packages", "metapackage", "prepare"]

Say = Callable[[str], None]
Check = Callable[["Image"], str]

FORMAT = "3"  # of an image; what an older k8snet made is not used
BUSYBOX = "busybox-static"
METAPACKAGES = {"debian": "linux-image-amd64", "ubuntu": "linux-image-generic"}
OF_A_KERNEL = re.compile(r"linux-(?:image|modules|modules-extra)-\d\S*(?<!-unsigned)")
ONLY_DEPENDS = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
DOWNLOAD_S = 1800.0

BOOT = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_rng")
AT_START = ("br_netfilter", "ip_vs")  # nothing asks Linux to load them when they are needed
LABS = (
    "bridge", "veth", "vxlan", "geneve", "ipip", "sit", "ip_gre", "ip6_tunnel", "macvlan", "ipvlan", "8021q",
    "wireguard", "dummy", "tun", "vrf", "sch_*", "cls_*", "act_*", "nf_*", "nft_*", "xt_*", "ip_set*", "ip_vs_*",
    "ip_tables", "ip6_tables", "iptable_*", "ip6table_*", "ipt_*", "ip6t_*", "ebtable*", "ebt_*", "nfnetlink*",
    "*_diag", "sctp", "crc32c_*", "sha1_generic",  # the last two through the crypto API, which names no file
)  # fmt: skip
INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b modprobe -qa {" ".join(BOOT)}
share() {{ $b mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"; }}
share root /host cache=loose,ro || exit 1
$b mount -t tmpfs rw /rw
$b mkdir /rw/up /rw/work
$b mount -t overlay -o nosuid,lowerdir=/host,upperdir=/rw/up,workdir=/rw/work root /new || exit 1
for folder in proc sys dev; do $b mount -o move /$folder /new/$folder; done
cd /new
$b mkdir -p lib/modules dev/pts dev/shm
$b mount -o bind "/host$IMAGE/lib/modules" lib/modules
echo "$IMAGE/modprobe" > proc/sys/kernel/modprobe
$b mount -t tmpfs -o mode=755 tmpfs run
$b mount -t tmpfs -o mode=1777 tmpfs dev/shm
$b mount -t devpts -o ptmxmode=666,mode=620 devpts dev/pts
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do $b ln -s /proc/self/${{link#*:}} dev/${{link%:*}}; done
$b mkdir -p run/netns run/lock
$b mount -t tmpfs tmpfs run/netns
$b mount --make-shared run/netns
$b mount -t cgroup2 cgroup sys/fs/cgroup
$b ifconfig lo up
$b hostname k8snet-vm
for number in 0 1 2 3 4 5 6 7; do
    eval path=\\$SHARE$number
    [ -n "$path" ] || break
    $b mkdir -p ".$path"
    share share$number ".$path" cache=mmap,nosuid || exit 1
done
for number in 0 1 2 3; do
    eval path=\\$CODE$number
    [ -n "$path" ] || break
    $b mount -o bind "/host$path" ".$path" || exit 1
done
$b chroot . "$IMAGE/modprobe" -qa {" ".join(AT_START)}
exec $b switch_root /new "$PYTHON" -I -S "$GUEST"
"""


@dataclass(frozen=True, kw_only=True)
class Image:
    """What is needed to start a guest."""

    folder: Path
    release: str  # of its Linux
    accelerator: str  # kvm or tcg: what a guest was seen to boot with

    @property
    def kernel(self) -> Path:
        """The kernel, uncompressed where we know how."""
        return self.folder / "vmlinux"

    @property
    def initramfs(self) -> Path:
        """The first files of the guest."""
        return self.folder / "initramfs"


def folder() -> Path:
    """Return where images are."""
    return state_folder() / "vm"


def find() -> Image:
    """Return the image that was prepared last.

    Raises:
        CapabilityMissing: there is none.
    """
    found = sorted(folder().glob(f"*-{FORMAT}/image.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CapabilityMissing("no virtual machine is prepared here. Once, do: k8snet vm prepare")
    return Image(folder=found[-1].parent, **json.loads(found[-1].read_text()))


def clean() -> int:
    """Remove every image, and return how many there were."""
    with _locked():
        images = [path for path in folder().iterdir() if path.is_dir()]
        for path in images:
            shutil.rmtree(path)
    return len(images)


def prepare(say: Say, check: Check) -> Image:
    """Make an image, and keep it if it boots.

    Args:
        say: is told, in a line each, what is being done.
        check: boots the image, returns the accelerator that it ran with, and raises if it does not run.

    Raises:
        CapabilityMissing: no package of a kernel can be had here; the message says what to do.
        K8snetError: what *check* raises, or a package that is not as we know them.
    """
    if platform.machine() != "x86_64":
        raise CapabilityMissing(f"the virtual machine is for x86_64; this machine is {platform.machine()}")
    with _locked():
        for left in folder().glob(".new-*"):  # by one that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder(), ignore_cleanup_errors=True) as name:
            new, source = Path(name, "image"), Path(name, "packages")
            new.mkdir()
            source.mkdir()
            release = _make(new, source, say)
            shutil.rmtree(source)
            say("5 of 5: booting it once")
            image = Image(folder=new, release=release, accelerator="tcg")
            told = {"release": release, "accelerator": check(image)}
            (new / "image.json").write_text(json.dumps(told))
            final = folder() / f"{release}-{FORMAT}"
            if final.exists():
                final.rename(Path(name, "old"))
            new.rename(final)
    return Image(folder=final, **told)


@contextmanager
def _locked() -> Iterator[None]:
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(new: Path, source: Path, say: Say) -> str:
    """Fill the folder *new*, and return the release of its kernel."""
    release = platform.release()
    apt = functools.cache(lambda: _apt(source, say))
    say("1 of 5: finding a busybox")
    shutil.copy(_own_busybox() or _busybox(source, apt()), new / "busybox")
    (new / "modprobe").symlink_to("busybox")
    if _is_complete(Path("/"), release):
        say(f"2 of 5: taking this machine's own Linux {release}")
        source = Path("/")
    else:
        packages = _kernel_packages(apt())
        say(f"2 of 5: fetching {', '.join(packages)} (70 MB or more)")
        _fetch(source, packages, apt())
        release = next(source.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-")
        if not _is_complete(source, release):
            raise CapabilityMissing(f"the packages {', '.join(packages)} have not all of: {', '.join(BOOT)}")
    say("3 of 5: choosing modules")
    known = _modules(source, release)
    _copy(known, [*BOOT, *AT_START, *LABS], new, release)
    say("4 of 5: packing the initramfs and unpacking the kernel")
    _pack(known, new, release)
    (new / "vmlinux").write_bytes(_unpacked_kernel((source / "boot" / f"vmlinuz-{release}").read_bytes()))
    return release


# -- packages --------------------------------------------------------------------------


def _own_busybox() -> Path | None:
    """Return this machine's busybox, if it needs no library."""
    found = Path(shutil.which("busybox") or "/")
    return found if found.is_file() and b"/ld-" not in found.read_bytes()[:4096] else None


def _busybox(source: Path, apt: list[str]) -> Path:
    _fetch(source, [BUSYBOX], apt)
    return next(source.glob("**/bin/busybox"))  # /usr may be merged


def _apt(source: Path, say: Say) -> list[str]:
    """Return the options with which apt knows packages: none, or lists of our own where the machine's are empty."""
    if programs.run(["apt-cache", "show", BUSYBOX], check=False).ok:
        return []
    say("      first apt's lists of packages, which this machine has thrown away")
    (source / "lists/partial").mkdir(parents=True)
    (source / "cache/archives/partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::lists={source}/lists", "-o", f"Dir::Cache={source}/cache"]
    _run_apt(["apt-get", "-q", *options, "update"])
    return options


def metapackage(distribution: Mapping[str, str]) -> str:
    """Return the package that depends on a distribution's newest kernel and all of its modules.

    Args:
        distribution: what /etc/os-release says there.

    Raises:
        CapabilityMissing: it is not Debian, not Ubuntu, and not made of one of them.
    """
    for name in (distribution.get("ID", ""), *distribution.get("ID_LIKE", "").split()):  # the nearest relative first
        if name in METAPACKAGES:
            return METAPACKAGES[name]
    name = distribution.get("PRETTY_NAME", "this system")
    raise CapabilityMissing(f"a kernel for the virtual machine comes from Debian or Ubuntu, and {name} is neither")


def kernel_packages(told: str) -> list[str]:
    """Return which packages are a kernel and its modules, of all that `apt-cache depends --recurse` lists."""
    return sorted({line for line in told.splitlines() if OF_A_KERNEL.fullmatch(line)})


def _kernel_packages(apt: list[str]) -> list[str]:
    try:
        name = metapackage(platform.freedesktop_os_release())
    except OSError:  # no such file
        name = metapackage({})
    options = [*apt, *(f"--no-{kind}" for kind in ONLY_DEPENDS)]
    told = programs.run(["apt-cache", "depends", "--recurse", *options, name], check=False)
    if found := kernel_packages(told.stdout):
        return found
    raise CapabilityMissing(f"apt knows no package {name}. Try: sudo apt-get update")


def _fetch(source: Path, packages: list[str], apt: list[str]) -> None:
    """Download packages as apt trusts them, and unpack them in the folder *source*."""
    _run_apt(["env", f"--chdir={source}", "apt-get", "-q", *apt, "download", *packages])
    for package in source.glob("*.deb"):
        programs.run(["dpkg", "-x", str(package), str(source)], timeout_s=DOWNLOAD_S)
        package.unlink()


def _run_apt(words: list[str]) -> None:
    try:
        programs.run(words, timeout_s=DOWNLOAD_S)
    except CommandFailed as error:
        reason = " ".join(error.stderr.strip().splitlines()[-1:])
        raise CapabilityMissing(f"apt cannot fetch what the virtual machine needs: {reason}") from None


def _modules(root: Path, release: str) -> dict[str, Path]:
    """Return the file of each module, under the name that Linux knows it by."""
    places = (root / "lib/modules" / release, root / "usr/lib/modules" / release)
    found = [path for place in places for path in place.glob("kernel/**/*.ko*")]
    return {path.name.split(".ko")[0].replace("-", "_"): path for path in found}


def _is_complete(root: Path, release: str) -> bool:
    """Tell whether the kernel can be read and has what a guest needs, as modules or built in."""
    lists = [root / place / release / "modules.builtin" for place in ("lib/modules", "usr/lib/modules")]
    try:
        with (root / "boot" / f"vmlinuz-{release}").open("rb"):
            built_in = " ".join(one.read_text() for one in lists if one.exists()).replace("-", "_")
    except OSError:  # not there, or root's alone
        return False
    known = _modules(root, release)
    return all(name in known or f"/{name}.ko" in built_in for name in (*BOOT, *AT_START))


# -- modules and files -----------------------------------------------------------------


def _copy(known: dict[str, Path], wanted: list[str], new: Path, release: str) -> None:
    """Copy the modules called *wanted*, with all that they depend on, and list them as depmod does."""
    target = new / "lib/modules" / release
    target.mkdir(parents=True)
    todo = [name for pattern in wanted for name in fnmatch.filter(known, pattern)]
    while todo:
        name = todo.pop()
        copy = target / f"{name}.ko"
        if not copy.exists():
            copy.write_bytes(data := _unpacked(known[name]))
            depends = re.findall(rb"\0depends=([^\0]*)", data)
            todo += [one.replace("-", "_") for one in b",".join(depends).decode().split(",") if one]
    programs.run([str(new / "busybox"), "depmod", "-b", str(new), release])


def _pack(known: dict[str, Path], new: Path, release: str) -> None:
    """Write the initramfs: busybox, the modules without which there is no root, and /init."""
    with tempfile.TemporaryDirectory(dir=new) as name:
        root = Path(name)
        for empty in ("bin", "proc", "sys", "dev", "host", "rw", "new"):
            (root / empty).mkdir()
        shutil.copy(new / "busybox", root / "bin/busybox")
        (root / "busybox").symlink_to("bin/busybox")
        _copy(known, list(BOOT), root, release)
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        pack = [str(new / "busybox"), "cpio", "-o", "-H", "newc", "-F", str(new / "initramfs")]
        programs.run(["env", f"--chdir={root}", *pack], stdin=names)


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return zlib.decompress(path.read_bytes(), 31)
    if path.suffix == ".zst":
        with tempfile.NamedTemporaryFile() as plain:
            programs.run(["zstd", "-dqf", str(path), "-o", plain.name])
            return Path(plain.name).read_bytes()
    return path.read_bytes()


def _unpacked_kernel(image: bytes) -> bytes:
    """Return the ELF file inside a bzImage, which boots faster; else the bzImage (Linux, x86 boot protocol)."""
    sectors, (offset, length) = image[0x1F1] or 4, struct.unpack_from("<II", image, 0x248)
    packed = image[(sectors + 1) * 512 + offset :][:length]
    if packed.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(packed)
    if packed.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(packed)
    if packed.startswith(b"\x28\xb5\x2f\xfd"):
        with tempfile.NamedTemporaryFile(suffix=".zst") as file:
            file.write(packed[:-4])  # its size in the open, at the end
            file.flush()
            return _unpacked(Path(file.name))
    return image
